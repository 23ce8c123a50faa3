"""Networks without pathways: pairs by name, prefixes, rules, several sources."""

import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from dmx.config.model import ModelSection
from dmx.errors import TransferError
from dmx.model.build import build_network
from dmx.model.sketch import sketch_module, sketch_network
from dmx.transfer.apply import apply_plan
from dmx.transfer.describe import TensorInfo
from dmx.transfer.globs import rename
from dmx.transfer.layout import sketch_tensors
from dmx.transfer.options import MapRule, TransferOptions
from dmx.transfer.planning import plan_transfer
from tests.transfer.networks import origins, section, sketch, source


def plain(inputs: int = 1, classes: int = 2, *, width: int = 3, kernel: int = 3) -> nn.Module:
    """Return a network of two kernels, a normalization and a head."""
    return nn.Sequential(
        nn.Conv3d(inputs, width, kernel), nn.BatchNorm3d(width), nn.Conv3d(width, 4, kernel), nn.Conv3d(4, classes, 1)
    )


def rules(*pairs: Sequence[str]) -> tuple[MapRule, ...]:
    return tuple(MapRule(*pair) for pair in pairs)


def test_tensors_of_equal_name_are_copied_and_the_head_is_not() -> None:
    theirs, ours = plain(), plain(classes=3)
    made = plan_transfer(sketch_module(theirs, name="a"), sketch_module(ours, name="b"))
    apply_plan(made, {"a": theirs.state_dict()}, ours.state_dict())
    for name, tensor in theirs.state_dict().items():
        if not name.startswith("3."):
            assert torch.equal(ours.state_dict()[name], tensor), name
    assert {tensor.name for tensor in made.tensors if tensor.action == "initialized"} == {"3.weight", "3.bias"}
    assert {tensor.reason for tensor in made.tensors if tensor.action == "initialized"} == {"the head is new"}


@pytest.mark.parametrize("prefix", ["module.", "state_dict.net."])
def test_a_wrapper_prefix_is_removed_and_named(prefix: str) -> None:
    infos = [TensorInfo(prefix + name, tuple(tensor.shape)) for name, tensor in plain().state_dict().items()]
    made = plan_transfer(sketch_tensors(infos, name="file"), sketch_module(plain(), name="b"))
    assert f"Names of file were compared without their prefix '{prefix}'." in made.notes
    assert made.pairs[0] == ("0", "file", f"{prefix}0")
    assert not plan_transfer(sketch_module(plain(), name="a"), sketch_module(plain(), name="b")).notes


def test_a_prefix_of_the_target_is_removed_too() -> None:
    made = plan_transfer(sketch_module(plain(), name="a"), sketch_module(nn.ModuleDict({"network": plain()}), name="b"))
    assert "Names of b were compared without their prefix 'network.'." in made.notes


def test_nothing_is_paired_by_order() -> None:
    theirs = nn.ModuleDict({"x": nn.Conv3d(1, 3, 3), "y": nn.Conv3d(3, 2, 1)})
    with pytest.raises(
        TransferError, match=r"Nothing would be transferred.*a has x.weight, x.bias.*Name pairs in a map"
    ):
        plan_transfer(sketch_module(theirs, name="a"), sketch_module(plain(), name="b"))


def test_only_channel_counts_may_differ() -> None:
    theirs, ours = plain(width=3), plain(width=5)
    made = plan_transfer(sketch_module(theirs, name="a"), sketch_module(ours, name="b"))
    apply_plan(made, {"a": theirs.state_dict()}, ours.state_dict())
    assert torch.equal(ours.state_dict()["2.weight"][:, :3], theirs.state_dict()["2.weight"])
    with pytest.raises(TransferError, match=r"0.weight has 5x5x5 where 0.weight has 3x3x3; 2.weight has 5x5x5"):
        plan_transfer(sketch_module(plain(), name="a"), sketch_module(plain(kernel=5), name="b"))


def test_another_number_of_axes_is_an_error() -> None:
    theirs, ours = (
        nn.ModuleDict({"a": nn.Linear(4, 4)}),
        nn.ModuleDict({"a": nn.Conv3d(4, 4, 1), "head": nn.Linear(2, 2)}),
    )
    with pytest.raises(TransferError, match=r"a.weight has 1x1x1 where a.weight has the shape \[4, 4\] \(cannot"):
        plan_transfer(
            sketch_module(theirs, name="a"), sketch_module(ours, name="b"), TransferOptions(adapt_kernels=True)
        )


def test_layers_are_modules_with_parameters_in_order() -> None:
    first = plan_transfer(
        sketch_module(plain(), name="a"), sketch_module(plain(), name="b"), TransferOptions(layers=(1, 3))
    )
    assert origins(first) == {"0": "0", "2": "2"}
    last = plan_transfer(
        sketch_module(plain(), name="a"), sketch_module(plain(), name="b"), TransferOptions(layers=(4,))
    )
    assert origins(last) == {"3": "3"}
    with pytest.raises(TransferError, match="from 1 to 4, or names of its layers, got 5"):
        plan_transfer(sketch_module(plain(), name="a"), sketch_module(plain(), name="b"), TransferOptions(layers=(5,)))


def test_a_chosen_layer_without_counterpart_is_an_error() -> None:
    theirs = nn.ModuleDict({"0": nn.Conv3d(1, 3, 3), "extra": nn.Conv3d(3, 3, 3), "3": nn.Conv3d(3, 2, 1)})
    with pytest.raises(TransferError, match=r"Depth 2 of the source, extra, has no counterpart"):
        plan_transfer(sketch_module(theirs, name="a"), sketch_module(plain(), name="b"), TransferOptions(layers=(1, 2)))


def test_the_head_by_name() -> None:
    options = TransferOptions(head="copy")
    assert "3" in origins(plan_transfer(sketch_module(plain(), name="a"), sketch_module(plain(), name="b"), options))
    with pytest.raises(TransferError, match=r"2 classes, that of b 3"):
        plan_transfer(sketch_module(plain(), name="a"), sketch_module(plain(classes=3), name="b"), options)
    other = nn.ModuleDict({"0": nn.Conv3d(1, 3, 3), "out": nn.Conv3d(3, 2, 1)})
    with pytest.raises(TransferError, match=r"the head of b is out.*Name the source's in a map"):
        plan_transfer(sketch_module(plain(), name="a"), sketch_module(other, name="b"), options)
    mapped = TransferOptions(head="copy", map=rules(("3", "out")))
    assert (
        origins(plan_transfer(sketch_module(plain(), name="a"), sketch_module(other, name="b"), mapped))["out"] == "3"
    )


def test_rows_of_a_head_by_class_name() -> None:
    theirs = sketch_module(plain(classes=3), name="a", classes=("background", "edema", "core"))
    ours = sketch_module(plain(classes=2), name="b", classes=("background", "core"))
    made = plan_transfer(theirs, ours, TransferOptions(head="copy", classes_from="names"))
    runs = next(tensor for tensor in made.tensors if tensor.name == "3.weight").parts[0]
    assert runs is not None
    assert [(run.target, run.source) for run in runs] == [(0, 0), (1, 2)]


def test_rules_rename_tensors_and_layers() -> None:
    theirs = nn.ModuleDict({"enc_1": nn.Conv3d(1, 3, 3), "enc_2": nn.Conv3d(3, 4, 3)})
    made = plan_transfer(
        sketch_module(theirs, name="a"),
        sketch_module(plain(), name="b"),
        TransferOptions(map=rules(("enc_1", "0"), ("enc_2.w*", "2.w*"))),
    )
    given = {tensor.name: tensor.source for tensor in made.tensors if tensor.action == "copied"}
    assert given == {"0.weight": "enc_1.weight", "0.bias": "enc_1.bias", "2.weight": "enc_2.weight"}


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("enc.*", "2.*")], "a has no 'enc"),
        ([("0.*", "nowhere.*")], "b has no 'nowhere.weight'"),
        ([("0", "*")], "more stars in the target"),
        ([("0", "0"), ("0.weight", "0.weight")], "Two rules lead to '0.weight'"),
        ([("0", "0", "c")], "must name its source, one of a, got 'c'"),
    ],
)
def test_a_rule_that_does_not_work_is_one_sentence(pairs: list[tuple[str, ...]], words: str) -> None:
    with pytest.raises(TransferError) as error:
        plan_transfer(
            sketch_module(plain(), name="a"), sketch_module(plain(), name="b"), TransferOptions(map=rules(*pairs))
        )
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("rule", "name", "wanted"),
    [
        (("a.*.w", "b.*.v"), "a.1.w", "b.1.v"),
        (("*.x.*", "n.*"), "p.x.q", "n.p"),
        (("a", "b"), "ab", None),
        (("a.b", "c"), "axb", None),
    ],
)
def test_stars_stand_for_what_they_matched(rule: tuple[str, str], name: str, wanted: str | None) -> None:
    assert rename(MapRule(*rule), name) == wanted


def test_pathways_come_from_one_source_and_fc_from_another() -> None:
    first, second = source(section()), sketch(section(), name="other")
    options = TransferOptions(
        map=rules(
            ("normal.*", "normal.*", "source"), ("subsampled_*", "subsampled_*", "source"), ("fc.*", "fc.*", "other")
        )
    )
    made = plan_transfer([first, second], sketch(section()), options)
    networks = {target: network for target, network, _ in made.pairs}
    assert networks == {
        "normal.block_1": "source",
        "normal.block_2": "source",
        "subsampled_1.block_1": "source",
        "subsampled_1.block_2": "source",
        "fc.block_1": "other",
    }
    # fc of another network does not compute what it computed, as it reads other pathways.
    assert "fc.block_1" not in {entry.layer for entry in made.equal}
    assert "normal.block_2" in {entry.layer for entry in made.equal}


def test_a_rule_overrides_the_default_of_a_single_source() -> None:
    options = TransferOptions(map=rules(("normal.*", "subsampled_1.*")))
    made = origins(plan_transfer(source(section()), sketch(section()), options))
    assert made["subsampled_1.block_2"] == "normal.block_2"
    assert made["normal.block_2"] == "normal.block_2"


def test_a_rule_reaches_the_head_and_pathways_that_are_too_long() -> None:
    options = TransferOptions(map=rules(("normal.block_1", "normal.block_3"), ("head.*", "head.*")))
    theirs, ours = section((4, 4), pathways=0), section((4, 4, 4), pathways=0)
    with pytest.raises(TransferError, match="--layers"):
        plan_transfer(source(theirs), sketch(ours))
    made = origins(plan_transfer(source(theirs), sketch(ours), options))
    assert made["normal.block_3"] == "normal.block_1"
    assert made["head"] == "head"


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        (("nromal.*", "normal.*"), "matches no layer of source"),
        (("normal.*", "middle.*"), "leads to 'middle.block_1', which target does not have"),
    ],
)
def test_a_rule_between_pathways_must_name_layers(pair: tuple[str, str], words: str) -> None:
    with pytest.raises(TransferError, match=words):
        plan_transfer(source(section()), sketch(section()), TransferOptions(map=rules(pair)))


def test_two_rules_may_not_lead_to_one_layer() -> None:
    options = TransferOptions(map=rules(("normal.*", "normal.*"), ("subsampled_1.*", "normal.*")))
    with pytest.raises(TransferError, match=r"Two rules lead to 'normal.block_1'"):
        plan_transfer(source(section()), sketch(section()), options)


def test_several_sources_need_names_and_rules() -> None:
    with pytest.raises(TransferError, match="several of different names, got twice 'source'"):
        plan_transfer([source(section()), source(section())], sketch(section()))
    with pytest.raises(TransferError, match="got none"):
        plan_transfer([], sketch(section()))
    for other in (sketch(section(), name="other"), sketch_module(plain(), name="other")):
        with pytest.raises(TransferError, match="Rules must say what comes from which of 2 sources"):
            plan_transfer([source(section()), other], sketch(section()))
    options = TransferOptions(map=rules(("normal.*", "normal.*")))
    with pytest.raises(TransferError, match="one of source, other, got none"):
        plan_transfer([source(section()), sketch(section(), name="other")], sketch(section()), options)


def test_zero_cross_is_refused_where_the_joins_are_not_known() -> None:
    options = TransferOptions(extra="zero-cross")
    with pytest.raises(TransferError, match=r"widens multi-scale networks only.*: 0, 1, 2\."):
        plan_transfer(sketch_module(plain(), name="a"), sketch_module(plain(width=5), name="b"), options)
    assert plan_transfer(sketch_module(plain(), name="a"), sketch_module(plain(), name="b"), options).received
    infos = [TensorInfo(tensor.name, tensor.shape) for tensor in sketch(section()).tensors]
    with pytest.raises(TransferError, match="a file of weights does not say"):
        plan_transfer(sketch_tensors(infos, name="file"), sketch(section()), options)


UNET = ModelSection(name="UNet", arguments={"channels": [2, 4], "strides": [2], "num_res_units": 1})


def test_input_channels_of_other_networks_are_matched_by_name_where_they_are_read() -> None:
    theirs = build_network(UNET, num_channels=2, num_classes=2, seed=1)
    ours = build_network(UNET, num_channels=3, num_classes=3, seed=2)
    made = plan_transfer(
        sketch_network(theirs, name="a", channels=("t1", "t2")),
        sketch_network(ours, name="b", channels=("t2", "flair", "t1")),
    )
    apply_plan(made, {"a": theirs.state_dict()}, ours.state_dict())
    for layer in ("network.model.0.conv.unit0.conv", "network.model.0.residual"):
        old, new = theirs.state_dict()[f"{layer}.weight"], ours.state_dict()[f"{layer}.weight"]
        assert torch.equal(new[:, 2], old[:, 0])
        assert torch.equal(new[:, 0], old[:, 1])
    assert "network.model.2.1.conv.unit0.conv" not in origins(made)


def test_channels_in_order_are_a_warning_where_nobody_knows_who_reads_them() -> None:
    theirs = sketch_module(plain(2), name="a", channels=("t1", "t2"))
    made = plan_transfer(theirs, sketch_module(plain(2), name="b", channels=("t2", "t1")))
    assert any("are taken in order for t2, t1" in warning for warning in made.warnings)
    same = plan_transfer(theirs, sketch_module(plain(2), name="b", channels=("t1", "t2")))
    assert not same.warnings


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys; import dmx.transfer.planning, dmx.transfer.picture, dmx.transfer.header\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_options_that_need_one_source_or_a_copied_head_are_not_ignored() -> None:
    several = [source(section()), sketch(section(), name="other")]
    fc = rules(("fc.*", "fc.*", "other"))
    with pytest.raises(TransferError, match="--layers counts the depths of one source, got 2"):
        plan_transfer(several, sketch(section()), TransferOptions(layers=(1,), map=fc))
    with pytest.raises(TransferError, match="no rule says from which of the sources"):
        plan_transfer(several, sketch(section()), TransferOptions(head="copy", map=fc))
    with pytest.raises(TransferError, match="Add --head copy"):
        plan_transfer(source(section()), sketch(section()), TransferOptions(classes_from="names"))
    head = rules(("head", "head", "other"))
    made = plan_transfer(several, sketch(section()), TransferOptions(head="copy", map=(*fc, *head)))
    assert {target for target, _, _ in made.pairs} == {"fc.block_1", "head"}


def test_a_wrapper_around_pathways_is_seen_through() -> None:
    infos = [TensorInfo(f"module.{tensor.name}", tensor.shape) for tensor in sketch(section((3, 4))).tensors]
    made = plan_transfer(sketch_tensors(infos, name="file"), sketch(section((3, 6))))
    kernel = next(tensor for tensor in made.tensors if tensor.name == "fc.block_1.conv.weight")
    assert kernel.source == "module.fc.block_1.conv.weight"
    runs = kernel.parts[1]
    assert runs is not None
    assert [(run.target, run.source, run.length) for run in runs] == [(0, 0, 4), (6, 4, 4)]
    assert "Names of file were compared without their prefix 'module.'." in made.notes
    mixed = [*infos, TensorInfo("ema.normal.block_1.conv.weight", (3, 2, 3, 3, 3))]
    assert sketch_tensors(mixed, name="file").pathways == ()
