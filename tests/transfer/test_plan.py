"""Plans as values: kept, read again, shown, carried out."""

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dmx.config.model import FCSection, ModelSection, NormalizationSection, PathwaySection, SubsampledSection
from dmx.errors import CheckpointError, TransferError
from dmx.model.sketch import sketch_module, sketch_network
from dmx.transfer.apply import apply_plan
from dmx.transfer.describe import TensorInfo
from dmx.transfer.header import check_header, read_header
from dmx.transfer.layout import sketch_tensors
from dmx.transfer.options import MapRule, TransferOptions
from dmx.transfer.picture import mapping_html
from dmx.transfer.plan import TransferPlan
from dmx.transfer.planning import plan_transfer
from tests.transfer.networks import build, origins, plan, section, sketch, source


def rich() -> TransferPlan:
    """Return a plan with everything in it: slices, adaptations, rules, notes, warnings."""
    return plan_transfer(
        source(section((3, 4), norm="batch_rolling"), compatibility="deepmedic", channels=("flair", "t1")),
        sketch(section((6, 8), fc=(10,), pathways=2, kernels=(3, 5))),
        TransferOptions(adapt_kernels=True, map=(MapRule("subsampled_1.*", "subsampled_2.*"),)),
    )


def test_a_plan_survives_json() -> None:
    made = rich()
    kept = json.loads(json.dumps(made.as_dict()))
    assert TransferPlan.from_dict(kept) == made
    assert kept["received"] == made.received
    with pytest.raises(TransferError, match="format 1 is needed, got 7"):
        TransferPlan.from_dict({**kept, "format_version": 7})


def test_every_tensor_of_both_sides_appears_once() -> None:
    made = rich()
    theirs = source(section((3, 4), norm="batch_rolling"), compatibility="deepmedic")
    ours = sketch(section((6, 8), fc=(10,), pathways=2, kernels=(3, 5)))
    assert [tensor.name for tensor in made.tensors] == [tensor.name for tensor in ours.tensors]
    assert [tensor.name for tensor in made.source_tensors] == [tensor.name for tensor in theirs.tensors]
    assert all(tensor.reason for tensor in made.tensors if tensor.action == "initialized")
    assert made.parameters == sum(tensor.size for tensor in ours.tensors if tensor.learned)


def test_the_summary_has_a_line_per_layer_and_ends_with_the_count() -> None:
    made = rich()
    lines = made.summary()
    names = [layer.name for layer in made.target.layers]
    assert [line.split()[0] for line in lines[: len(names)]] == names
    assert lines[-1].startswith(f"{made.received:,} of {made.parameters:,} parameters received")
    assert str(made) == "\n".join(lines)
    assert "initialized: the head is new" in lines[names.index("head")]
    assert "sliced from source:normal.block_1" in lines[0]
    assert any(line.startswith("Warning: ") for line in lines)


def deep(layers: int, *, inputs: int = 2) -> nn.Sequential:
    kernels = [nn.Conv2d(inputs, 2, 1), *(nn.Conv2d(2, 2, 1) for _ in range(layers - 2)), nn.Conv2d(2, 4, 1)]
    return nn.Sequential(*kernels)


def test_many_layers_that_are_copied_whole_are_one_line() -> None:
    theirs = sketch_module(deep(40), name="photos")
    same = plan_transfer(theirs, sketch_module(deep(40), name="target"))
    assert [line.split()[:3] for line in same.summary(folded=True)[:2]] == [
        ["0", "…", "38"],
        ["39", "initialized:", "the"],
    ]
    assert "copied from photos:0 … 38 (39 layers, 234 parameters)" in same.summary(folded=True)[0]
    assert same.summary(folded=True)[2].startswith("Layer by layer")
    wider = plan_transfer(theirs, sketch_module(deep(40, inputs=3), name="target"))
    lines = wider.summary(folded=True)
    assert "sliced" in lines[0]
    assert lines[1].startswith("1 … 38 ")
    # The whole list is still there, and a network that a screen has room for is told layer by layer.
    assert len(same.layer_lines()) == 40
    assert len(str(same).splitlines()) == len(same.summary()) == 41
    few = plan_transfer(sketch_module(deep(30), name="photos"), sketch_module(deep(30), name="target"))
    assert few.summary(folded=True) == few.summary()


def test_rows_name_what_is_unused_as_well() -> None:
    made = plan(section(pathways=2), section(pathways=1))
    rows = made.rows()
    assert len({tuple(row) for row in rows}) == 1
    unused = [row["source"] for row in rows if row["action"] == "unused"]
    assert "subsampled_2.block_1.conv.weight" in unused
    assert not any(name.startswith("normal.") for name in unused)
    kernel = next(row for row in rows if row["target"] == "fc.block_1.conv.weight")
    assert kernel["part"] == "[:], [0:8]"
    assert kernel["exact"] == "yes"


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in {"meta", "path", "rect", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_picture_is_one_page_that_loads_and_stores_nothing() -> None:
    text = mapping_html(rich())
    page = Page()
    page.feed(text)
    assert page.links == []
    assert page.open == []
    assert not re.search(r"https?:|localStorage|sessionStorage|cookie|fetch\(|@import|url\(", text)
    assert "@drawing@" not in text
    assert f"{rich().received:,} of" in page.text


def test_the_picture_has_a_line_per_layer_that_receives_and_a_box_per_layer() -> None:
    made = rich()
    text = mapping_html(made)
    receiving = {tensor.layer for tensor in made.tensors if tensor.action != "initialized"}
    assert len(re.findall(r'<path class="line', text)) == len(receiving) == len(made.pairs)
    boxes = len(re.findall(r'<g class="box', text))
    assert boxes == len(made.target.layers) + len(made.sources[0].layers)
    colors = re.findall(r'<path class="line (\w+)"', text)
    assert set(colors) == {"sliced", "adapted"}
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    assert set(re.findall(r'data-key="([^"]*)"', text)) <= set(data["texts"])


def test_names_cannot_break_out_of_the_picture() -> None:
    evil = '</script><script>alert(1)</script><b title="x">&@table@'
    made = plan_transfer(
        sketch(section(), name=evil, channels=("<i>", "t1")),
        sketch(section(), channels=(evil, "t1")),
        TransferOptions(),
    )
    text = mapping_html(made)
    assert "<script>alert" not in text
    assert '<b title="x">' not in text
    assert "@table@" in text
    assert text.count("</script>") == 2


def test_a_plan_is_refused_by_another_network_before_anything_changes() -> None:
    made = plan(section(), section())
    theirs, other = build(section(), seed=1), build(section((3, 5)), seed=2)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(TransferError, match=r"normal.block_2.conv.weight must have the shape \[4, 3, 3, 3, 3\]"):
        apply_plan(made, {"source": theirs.state_dict()}, other.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(TransferError, match="got no such tensor"):
        apply_plan(made, {"source": theirs.state_dict()}, {})
    with pytest.raises(TransferError, match=r"another source: normal.block_2.conv.weight must"):
        apply_plan(made, {"source": other.state_dict()}, build(section(), seed=2).state_dict())


def test_half_precision_weights_arrive_in_the_targets_precision() -> None:
    theirs, ours = build(section(), seed=1), build(section(), seed=2)
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in theirs.state_dict().items()
    }
    apply_plan(plan(section(), section()), {"source": half}, ours.state_dict())
    kernel = ours.get_parameter("normal.block_1.conv.weight")
    assert kernel.dtype == torch.float32
    assert torch.equal(kernel, half["normal.block_1.conv.weight"].float())


def test_a_header_gives_names_and_shapes_without_weights(tmp_path: Path) -> None:
    network = build(section(), seed=1)
    path = tmp_path / "model.safetensors"
    save_file(network.state_dict(), path, metadata={"made": "here"})
    infos = read_header(path)
    check_header(sketch_network(network, name="run"), infos)
    learned = {name for name, _ in network.named_parameters()}
    assert {info.name for info in infos if info.learned} == learned
    assert {info.dtype for info in infos} == {"float32", "int64"}
    # Nothing beyond the table of contents is read: without it the answer is the same.
    length = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    path.write_bytes(path.read_bytes()[:length])
    assert read_header(path) == infos


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; download or copy it again"),
        (b"\x05\x00\x00\x00\x00\x00\x00\x00{", "no JSON"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00[]", "is cut off"),
        (b"\x09\x00\x00\x00\x00\x00\x00\x00" + b'{"a": {}}', "an entry lacks 'shape'"),
        (b"\xff" * 20, "no complete safetensors file"),
    ],
)
def test_a_file_that_is_no_safetensors_is_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(words)):
        read_header(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / "missing.safetensors")


def test_a_file_that_does_not_fit_lists_everything() -> None:
    infos = [TensorInfo(tensor.name, tensor.shape) for tensor in sketch(section()).tensors]
    wrong = [*infos[1:-1], TensorInfo(infos[-1].name, (9,)), TensorInfo("extra", (1,))]
    with pytest.raises(CheckpointError) as error:
        check_header(sketch(section()), wrong)
    for words in (f"{infos[0].name} is missing", "extra is unexpected", "is [9] instead of"):
        assert words in str(error.value)


def test_pathways_are_recognized_in_a_plain_state_dict() -> None:
    """Also in the order of a file, and with ten layers or more: block_10 comes after block_9."""
    model = section((3,) * 11, pathways=2, kernels=1)
    wanted = sketch(model)
    infos = [TensorInfo(tensor.name, tensor.shape) for tensor in wanted.tensors]
    found = sketch_tensors(sorted(infos, key=lambda info: info.name), name="file")
    assert found.pathways == wanted.pathways
    assert [layer.name for layer in found.layers] == [layer.name for layer in wanted.layers]
    for theirs, ours in zip(found.layers, wanted.layers, strict=True):
        assert (theirs.depth, theirs.reads, theirs.in_channels) == (ours.depth, ours.reads, ours.in_channels)
    narrow = [TensorInfo(tensor.name, tensor.shape) for tensor in sketch(section((3, 4))).tensors]
    made = plan_transfer(sketch_tensors(narrow, name="file"), sketch(section((3, 6))))
    assert origins(made)["fc.block_1"] == "fc.block_1"
    runs = next(tensor for tensor in made.tensors if tensor.name == "fc.block_1.conv.weight").parts[1]
    assert runs is not None
    assert [(run.target, run.source, run.length) for run in runs] == [(0, 0, 4), (6, 4, 4)]
    assert made.equal == ()


def test_a_sketch_of_a_network_and_of_its_section_agree() -> None:
    model = section(pathways=2, norm="batch_rolling")
    network = build(model, seed=1, compatibility="deepmedic")
    names = {"name": "x", "channels": ("a", "b"), "classes": ("c", "d")}
    assert sketch_network(network, **names) == sketch(model, compatibility="deepmedic", **names)  # type: ignore[arg-type]


@pytest.mark.slow
def test_two_full_networks_are_planned_in_a_fifth_of_a_second_without_their_weights(tmp_path: Path) -> None:
    model = ModelSection(
        normal=PathwaySection(residual=(4, 6, 8)),
        subsampled=(SubsampledSection(factor=3), SubsampledSection(factor=5)),
        fc=FCSection(widths=(250, 250), kernels=(3, 1, 1), padding=("mirror", "valid", "valid"), residual=(2,)),
        normalization=NormalizationSection(name="batch_rolling"),
    )
    network = build(model, seed=1, compatibility="deepmedic")
    path = tmp_path / "model.safetensors"
    save_file(network.state_dict(), path)
    length = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    path.write_bytes(path.read_bytes()[:length])
    ours = sketch_network(network, name="target", channels=("t1", "flair"), classes=("background", "lesion"))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        theirs = source(model, compatibility="deepmedic")
        check_header(theirs, read_header(path))
        made = plan_transfer(theirs, ours, TransferOptions(head="copy", extra="zero-cross"))
        seconds.append(time.perf_counter() - start)
    assert made.share == 1.0
    assert min(seconds) < 0.2
