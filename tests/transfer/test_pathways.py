"""Pathways, depths, widths, channels and the head, between networks with pathways."""

from dataclasses import replace

import pytest
import torch

from dmx.config.model import PathwaySection, SubsampledSection
from dmx.errors import TransferError
from dmx.transfer.options import TransferOptions
from dmx.transfer.planning import plan_transfer
from tests.transfer.networks import actions, build, origins, patches, plan, section, sketch, source, transfer


def test_by_default_every_layer_but_the_head_is_copied_bit_for_bit() -> None:
    theirs, ours = build(section(), seed=1), build(section(), seed=2)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    made = transfer(theirs, ours)
    for name, tensor in ours.state_dict().items():
        given = before if name.startswith("head.") else theirs.state_dict()
        assert torch.equal(tensor, given[name]), name
    head = sum(parameter.numel() for name, parameter in ours.named_parameters() if name.startswith("head."))
    total = sum(parameter.numel() for parameter in ours.parameters())
    assert (made.received, made.parameters) == (total - head, total)
    assert made.warnings == ()


def test_extra_pathways_receive_the_last_parallel_pathway_of_the_source() -> None:
    made = origins(plan(section(pathways=1), section(pathways=3)))
    assert made["normal.block_2"] == "normal.block_2"
    assert {made[f"subsampled_{k}.block_2"] for k in (1, 2, 3)} == {"subsampled_1.block_2"}
    assert made["fc.block_1"] == "fc.block_1"


def test_without_subsampled_pathways_the_normal_one_is_the_last() -> None:
    made = origins(plan(section(pathways=0), section(pathways=2)))
    assert made["subsampled_2.block_1"] == "normal.block_1"


def test_unused_pathways_of_the_source_are_reported() -> None:
    made = plan(section(pathways=2), section(pathways=1))
    assert any("Pathway 'subsampled_2' of source is not used" in note for note in made.notes)
    assert all(not tensor.used for tensor in made.source_tensors if tensor.layer.startswith("subsampled_2"))
    assert all(tensor.used for tensor in made.source_tensors if tensor.layer.startswith("subsampled_1"))


def test_widths_differ_the_first_kernels_and_input_channels_are_copied() -> None:
    theirs, ours = build(section((3, 4), pathways=0), seed=1), build(section((5, 3), pathways=0), seed=2)
    fresh = ours.get_parameter("normal.block_2.conv.weight").clone()
    transfer(theirs, ours)
    kernel = ours.get_parameter("normal.block_2.conv.weight")
    assert torch.equal(kernel[:3, :3], theirs.get_parameter("normal.block_2.conv.weight")[:3, :3])
    assert torch.equal(kernel[:, 3:], fresh[:, 3:])


def test_what_stands_before_the_kernel_follows_the_input_channels() -> None:
    # Output widths of block 2 are alike: sliced by rank, its 3 slopes would be taken for all of them.
    theirs, ours = build(section((3, 6), pathways=0), seed=1), build(section((5, 6), pathways=0), seed=2)
    fresh = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    transfer(theirs, ours)
    for part in ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "activation.weight"):
        name = f"normal.block_2.{part}"
        assert torch.equal(ours.state_dict()[name][:3], theirs.state_dict()[name])
        assert torch.equal(ours.state_dict()[name][3:], fresh[name][3:])


def test_the_first_fc_layer_keeps_each_pathways_block_at_its_own_offset() -> None:
    theirs, ours = build(section((3, 4), pathways=2), seed=1), build(section((3, 6), pathways=3), seed=2)
    fresh = ours.get_parameter("fc.block_1.conv.weight").clone()
    transfer(theirs, ours)
    old, new = theirs.get_parameter("fc.block_1.conv.weight"), ours.get_parameter("fc.block_1.conv.weight")
    for block in range(3):
        assert torch.equal(new[:, 6 * block : 6 * block + 4], old[:, 4 * block : 4 * block + 4])
        assert torch.equal(new[:, 6 * block + 4 : 6 * block + 6], fresh[:, 6 * block + 4 : 6 * block + 6])
    assert torch.equal(new[:, 18:], fresh[:, 18:])
    assert torch.equal(
        ours.get_parameter("fc.block_1.activation.weight")[6:10],
        theirs.get_parameter("fc.block_1.activation.weight")[4:8],
    )


def test_input_channels_are_matched_by_name() -> None:
    theirs, ours = build(section(), seed=1), build(section(), seed=2, num_channels=3)
    fresh = ours.get_parameter("normal.block_1.conv.weight").clone()
    made = transfer(theirs, ours, names={"source": ("t1", "flair"), "target": ("flair", "t2", "t1")})
    old, new = theirs.get_parameter("normal.block_1.conv.weight"), ours.get_parameter("normal.block_1.conv.weight")
    assert torch.equal(new[:, 2], old[:, 0])
    assert torch.equal(new[:, 0], old[:, 1])
    assert torch.equal(new[:, 1], fresh[:, 1])
    assert torch.equal(
        ours.get_parameter("normal.block_1.norm.bias")[2], theirs.get_parameter("normal.block_1.norm.bias")[0]
    )
    assert "Input channels from source: flair, t1 by name; new: t2." in made.notes


@pytest.mark.parametrize("names", [{"source": ("t1", "flair")}, {"source": ("t1", "flair"), "target": ("flair", "t1")}])
def test_input_channels_are_matched_by_position_without_names_or_on_request(names: dict[str, tuple[str, ...]]) -> None:
    theirs, ours = build(section(), seed=1), build(section(), seed=2)
    transfer(theirs, ours, names=names, match_channels="position")
    assert torch.equal(
        ours.get_parameter("normal.block_1.conv.weight"), theirs.get_parameter("normal.block_1.conv.weight")
    )


def test_channels_that_share_no_name_give_a_warning_that_names_the_option() -> None:
    made = plan_transfer(source(section(), channels=("a", "b")), sketch(section(), channels=("c", "d")))
    assert any("--match-channels position: a → c, b → d" in warning for warning in made.warnings)
    assert actions(made)["normal.block_1"] == "copied"
    fewer = plan_transfer(source(section(), channels=("a", "b")), sketch(section(), channels=("c",)))
    assert any("--channels repeat or mean" in warning for warning in fewer.warnings)
    assert any("2 layers of target keep random weights: normal.block_1, sub" in warning for warning in fewer.warnings)
    assert actions(fewer)["normal.block_1"] == "initialized"
    assert actions(made)["normal.block_2"] == "copied"


def test_a_shallower_target_takes_the_first_layers() -> None:
    made = plan(section((3, 4, 4), fc=(5, 5)), section((3, 4), fc=(5,)))
    assert origins(made) == {
        "normal.block_1": "normal.block_1",
        "normal.block_2": "normal.block_2",
        "subsampled_1.block_1": "subsampled_1.block_1",
        "subsampled_1.block_2": "subsampled_1.block_2",
        "fc.block_1": "fc.block_1",
    }


def test_a_source_that_is_not_deep_enough_is_an_error_for_each_pathway() -> None:
    with pytest.raises(TransferError, match=r"'normal' has 3 layers but the source's 'normal' has 2.*'fc' .*--layers"):
        plan(section((3, 4)), section((3, 4, 4), fc=(5, 5)))


def test_the_documents_example() -> None:
    """Depths 1, 2, 5 of a 4+3 network into an 8+3 one: two layers of each pathway and the first of fc, at depth 9."""
    small = section((3, 3, 4, 4), fc=(5, 5))
    large = section((3, 3, 4, 4, 4, 4, 5, 5), fc=(5, 5))
    made = plan(small, large, layers=(1, 2, 5))
    assert origins(made) == {
        "normal.block_1": "normal.block_1",
        "normal.block_2": "normal.block_2",
        "subsampled_1.block_1": "subsampled_1.block_1",
        "subsampled_1.block_2": "subsampled_1.block_2",
        "fc.block_1": "fc.block_1",
    }
    assert {layer.name: layer.depth for layer in made.target.layers}["fc.block_1"] == 9
    assert {layer.name: layer.depth for layer in made.sources[0].layers}["fc.block_1"] == 5


def test_fc_starts_after_the_longest_pathway() -> None:
    short = replace(
        section((3, 4, 4, 4)), subsampled=(SubsampledSection(widths=(3, 4), kernels=((5, 5, 5), (5, 5, 5)), factor=3),)
    )
    same = replace(short, normal=PathwaySection(widths=(3, 4, 4, 4)))
    assert origins(plan(short, same, layers=(3,))) == {"normal.block_3": "normal.block_3"}
    assert origins(plan(short, same, layers=(5,))) == {"fc.block_1": "fc.block_1"}


def test_a_depth_goes_to_extra_pathways_too() -> None:
    made = origins(plan(section(pathways=1), section(pathways=2), layers=(2,)))
    assert made["subsampled_2.block_2"] == "subsampled_1.block_2"


@pytest.mark.parametrize("depth", [0, 5, 9])
def test_a_depth_that_no_pathway_has_is_an_error(depth: int) -> None:
    with pytest.raises(TransferError, match=f"from 1 to 4 .*the head is 4.*got {depth}"):
        plan(section(), section(), layers=(depth,))


def test_a_missing_counterpart_is_an_error() -> None:
    with pytest.raises(TransferError, match=r"Depth 3 .*'normal' has 2 layers.*Leave 3 out"):
        plan(section((3, 4, 4)), section((3, 4)), layers=(1, 3))
    with pytest.raises(TransferError, match=r"Depth 4 of the source has no counterpart.*'fc' has 1 layers"):
        plan(section(fc=(5, 5)), section(fc=(5,)), layers=(4,))


def test_a_depth_of_an_unpaired_pathway_is_an_error() -> None:
    long = SubsampledSection(widths=(3, 4, 4), kernels=((3, 3, 3),), factor=5)
    theirs = replace(section(), subsampled=(SubsampledSection(factor=3), long))
    with pytest.raises(TransferError, match=r"Depth 3 of the source has no counterpart.*no pathway of the target"):
        plan(theirs, section(), layers=(3,))


def test_the_head_is_copied_on_request_and_by_its_depth() -> None:
    assert actions(plan(section(), section()))["head"] == "initialized"
    assert actions(plan(section(), section(), head="copy"))["head"] == "copied"
    assert origins(plan(section(), section(), layers=(4,))) == {"head": "head"}
    theirs, ours = build(section(), seed=1), build(section(), seed=2)
    transfer(theirs, ours, head="copy")
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())
    inputs = patches(theirs)
    assert torch.equal(theirs(inputs), ours(inputs))


@pytest.mark.parametrize("options", [TransferOptions(head="copy"), TransferOptions(layers=(1, 4))])
def test_a_copied_head_with_other_classes_is_an_error_that_names_the_way_out(options: TransferOptions) -> None:
    with pytest.raises(TransferError, match=r"2 classes, that of target 3.*--classes-from names"):
        plan_transfer(source(section()), sketch(section(), classes=("background", "lesion", "tumor")), options)


def test_rows_of_the_classes_that_both_sides_know_are_copied() -> None:
    made = plan_transfer(
        source(section(), classes=("background", "edema", "core")),
        sketch(section(), classes=("background", "core")),
        TransferOptions(head="copy", classes_from="names"),
    )
    bias = next(tensor for tensor in made.tensors if tensor.name == "head.conv.bias")
    runs = bias.parts[0]
    assert runs is not None
    assert [(run.target, run.source) for run in runs] == [(0, 0), (1, 2)]
    assert bias.action == "sliced"
    assert any(note == "Classes from source: background, core by name; not used: edema." for note in made.notes)


def test_classes_in_another_order_are_paired_by_name() -> None:
    made = plan_transfer(
        source(section(), classes=("background", "a", "b")),
        sketch(section(), classes=("background", "b", "a")),
        TransferOptions(head="copy"),
    )
    runs = next(tensor for tensor in made.tensors if tensor.name == "head.conv.bias").parts[0]
    assert runs is not None
    assert [(run.target, run.source) for run in runs] == [(0, 0), (2, 1), (1, 2)]


def test_class_names_are_needed_and_must_overlap() -> None:
    options = TransferOptions(head="copy", classes_from="names")
    with pytest.raises(TransferError, match="no class that both sides know"):
        plan_transfer(source(section(), classes=("x", "y")), sketch(section()), options)
    with pytest.raises(TransferError, match="source has none"):
        plan_transfer(replace(source(section()), classes=()), sketch(section()), options)


def test_kernels_of_another_size_are_one_error_for_all_layers() -> None:
    with pytest.raises(TransferError) as error:
        plan(section(kernels=3), section(kernels=5))
    for layer in ("normal.block_1", "normal.block_2", "subsampled_1.block_1", "subsampled_1.block_2"):
        assert f"{layer}.conv.weight has 5x5x5 where {layer}.conv.weight has 3x3x3" in str(error.value)
    assert "--adapt-kernels" in str(error.value)
    assert "fc.block_1" not in str(error.value)


def test_a_kernel_in_factors_is_no_whole_kernel() -> None:
    with pytest.raises(TransferError, match=r"normal.block_2.conv.weight has no counterpart.*conv.axis_0.weight"):
        plan(section(low_rank=(2,)), section(), adapt_kernels=True)
    assert set(actions(plan(section(low_rank=(2,)), section(low_rank=(2,)))).values()) == {"copied", "initialized"}


def test_factors_of_a_kernel_are_sliced_by_what_they_read() -> None:
    theirs = build(section((3, 4), low_rank=(2,)), seed=1)
    ours = build(section((5, 7), low_rank=(2,)), seed=2)
    transfer(theirs, ours)
    for axis, inputs in ((0, 3), (1, 4), (2, 4)):
        name = f"normal.block_2.conv.axis_{axis}.weight"
        assert torch.equal(ours.get_parameter(name)[:4, :inputs], theirs.get_parameter(name))


def test_under_half_received_is_a_warning() -> None:
    made = plan(section((3, 4)), section((12, 16), fc=(20,)))
    assert made.share < 0.5
    assert any(f"{made.received:,} of {made.parameters:,}" in warning for warning in made.warnings)


def test_classes_of_other_names_are_copied_by_position_and_the_plan_says_so() -> None:
    made = plan_transfer(
        source(section()), sketch(section(), classes=("background", "tumor")), TransferOptions(head="copy")
    )
    assert "Classes from source by position: tumor from lesion." in made.notes
    assert actions(made)["head"] == "copied"


def test_layers_that_read_other_layers_than_before_are_named() -> None:
    made = plan(section((3, 4, 4)), section((3, 4)))
    assert "Not exact: other layers are read here than in the source (fc.block_1)." in made.notes
    assert not any("other layers" in note for note in plan(section(), section(pathways=2)).notes)
