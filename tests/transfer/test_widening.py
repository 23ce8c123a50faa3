"""Exact widening, and what the plan says of outputs that stay equal."""

from dataclasses import replace

import pytest
import torch

from dmx.config.model import FCSection, ModelSection, NormalizationSection, PathwaySection, SubsampledSection
from dmx.errors import TransferError
from dmx.transfer.channels import ChannelMaps
from dmx.transfer.describe import NetworkSketch
from dmx.transfer.match import pair_layers
from dmx.transfer.options import TransferOptions
from dmx.transfer.planning import plan_transfer
from tests.transfer.networks import build, patches, plan, relative_error, section, sketch, source, transfer

ZERO = TransferOptions(extra="zero-cross", head="copy")
EXACT, PREFIX = 1e-5, 0.1


def wide(factor: int, *, norm: str = "batch", pathways: int = 2) -> ModelSection:
    """Return a network with residuals whose widths grow, in the parallel pathways and in fc."""
    model = section(
        [factor * width for width in (3, 3, 4, 4, 4, 5)],
        fc=(9 * factor, 20 * factor),
        pathways=pathways,
        norm=norm,
        residual=(4, 6),
    )
    return replace(model, fc=replace(model.fc, residual=(2,)))


def output_map(theirs: NetworkSketch, ours: NetworkSketch, layer: str) -> dict[int, int]:
    pairing = pair_layers([theirs], ours, ZERO)
    return ChannelMaps(ours, pairing.counterparts, ZERO).output(pairing.counterparts[layer])


@pytest.mark.parametrize("norm", ["batch", "batch_rolling", "instance", "none"])
@pytest.mark.parametrize("factor", [2, 3])
def test_zero_cross_keeps_the_scores_and_a_prefix_copy_does_not(norm: str, factor: int) -> None:
    theirs = build(wide(1, norm=norm), seed=1)
    exact, loose = (build(wide(factor, norm=norm), seed=2) for _ in range(2))
    made = transfer(theirs, exact, extra="zero-cross", head="copy")
    transfer(theirs, loose, head="copy")
    inputs = patches(theirs, 17)
    assert relative_error(theirs, exact, inputs) < EXACT
    assert relative_error(theirs, loose, inputs) > PREFIX
    assert made.equal[-1].layer == "head"


def test_kernels_in_factors_are_widened_exactly_too() -> None:
    theirs = build(section((3, 4), low_rank=(1, 2)), seed=1)
    exact, loose = (build(section((6, 9), low_rank=(1, 2)), seed=2) for _ in range(2))
    made = transfer(theirs, exact, extra="zero-cross", head="copy")
    inputs = patches(theirs)
    assert relative_error(theirs, exact, inputs) < EXACT
    assert made.equal[-1].layer == "head"
    # Between the factors new channels reach old ones, although the layer's input is the same.
    assert transfer(theirs, loose, head="copy").equal == ()


def test_the_plans_equal_outputs_are_equal_and_the_others_are_not_claimed() -> None:
    theirs, ours = build(wide(1), seed=1), build(wide(2), seed=2)
    made = transfer(theirs, ours, head="copy")
    assert [entry.layer for entry in made.equal] == ["normal.block_1", "subsampled_1.block_1", "subsampled_2.block_1"]
    exact = {entry.layer: entry for entry in transfer(theirs, ours, extra="zero-cross", head="copy").equal}
    outputs: dict[tuple[str, str], torch.Tensor] = {}
    for side, network in (("source", theirs), ("target", ours)):
        for layer in exact:
            network.get_submodule(layer).register_forward_hook(
                lambda _module, _inputs, output, side=side, layer=layer: outputs.update({(side, layer): output.clone()})
            )
        with torch.no_grad():
            network(patches(network, 17))
    for layer, entry in exact.items():
        for run in entry.runs:
            old = outputs["source", layer][:, run.source : run.source + run.length]
            new = outputs["target", layer][:, run.target : run.target + run.length]
            assert torch.allclose(old, new, rtol=1e-4, atol=1e-5), layer


def test_channels_beyond_a_residual_addition_stay_beyond_it() -> None:
    """The rule's own example: 30→40 channels with a residual, widened to 60→80: old 30 to 39 go to 60 to 69."""
    theirs = source(section((30, 30, 40, 40), residual=(4,)))
    ours = sketch(section((60, 60, 80, 80), residual=(4,)))
    found = output_map(theirs, ours, "normal.block_4")
    assert found == {**{c: c for c in range(30)}, **{c: c + 30 for c in range(30, 40)}}
    assert output_map(theirs, ours, "normal.block_3") == {c: c for c in range(40)}


def test_weights_from_new_to_old_channels_are_zero_and_others_are_not() -> None:
    theirs, ours = build(section((3, 4), pathways=0), seed=1), build(section((6, 8), pathways=0), seed=2)
    transfer(theirs, ours, extra="zero-cross")
    kernel = ours.get_parameter("normal.block_2.conv.weight")
    assert (kernel[:4, 3:] == 0).all()
    assert (kernel[4:] != 0).all()
    assert (kernel[:4, :3] != 0).all()


def test_new_input_channels_and_new_pathways_do_not_reach_old_channels() -> None:
    theirs = build(section((3, 4), pathways=1), seed=1, num_channels=1)
    ours = build(section((3, 4), pathways=2), seed=2, num_channels=2)
    transfer(theirs, ours, extra="zero-cross", head="copy", names={"source": ("t1",), "target": ("flair", "t1")})
    inputs = patches(ours)
    with torch.no_grad():
        wanted = theirs([patch[:, 1:] for patch in inputs[:2]])
        assert torch.allclose(ours(inputs), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("theirs", "ours", "why"),
    [
        (section((3, 8)), section((6, 4)), "normal.block_2: it has 4 channels, fewer than 8"),
        (section((4, 4), norm="group"), section((8, 8), norm="group"), "group normalization mixes"),
        (section((3, 3, 4, 4), residual=(4,)), section((6, 6, 8, 8)), "only one side adds"),
        (section((3, 3, 4, 4), residual=(4,)), section((6, 6, 8, 6), residual=(4,)), "1 of its channels receive no"),
        (section(pathways=2), section(pathways=1), "channels that it read are missing"),
    ],
)
def test_where_widening_cannot_be_exact_an_error_says_so(theirs: ModelSection, ours: ModelSection, why: str) -> None:
    with pytest.raises(TransferError, match=why):
        plan_transfer(source(theirs), sketch(ours), ZERO)
    assert plan_transfer(source(theirs), sketch(ours), TransferOptions(head="copy")).received > 0


def test_group_normalization_over_the_same_channels_is_exact() -> None:
    model = section((4, 4), fc=(8,), norm="group")
    theirs, ours = build(model, seed=1), build(model, seed=2)
    made = transfer(theirs, ours, extra="zero-cross", head="copy")
    assert made.equal[-1].layer == "head"
    assert relative_error(theirs, ours, patches(theirs)) < EXACT


def test_a_lost_input_channel_is_an_error() -> None:
    with pytest.raises(TransferError, match=r"normal.block_1: 1 of the 2 channels"):
        plan_transfer(source(section()), sketch(section(), channels=("flair",)), ZERO)


def test_nothing_is_claimed_where_settings_differ() -> None:
    theirs = source(section())
    assert plan_transfer(theirs, sketch(section()), TransferOptions(head="copy")).equal[-1].layer == "head"
    ours = sketch(replace(section(), activation="relu"))
    made = plan_transfer(theirs, ours, TransferOptions(head="copy"))
    assert {entry.layer for entry in made.equal} == {"normal.block_1", "subsampled_1.block_1"}
    assert any(note.startswith("Not exact: activation is prelu in the source and relu here") for note in made.notes)


def test_another_factor_or_upsampling_ends_the_equality() -> None:
    other = replace(section(), subsampled=(SubsampledSection(factor=5),))
    made = plan(section(), other, head="copy")
    assert {entry.layer for entry in made.equal} == {"normal.block_1", "normal.block_2"}
    made = plan(section(), replace(section(), upsampling="linear"), head="copy")
    assert "fc.block_1" not in {entry.layer for entry in made.equal}
    assert any("upsampling is nearest" in note for note in made.notes)


def test_a_residual_on_one_side_ends_the_equality() -> None:
    theirs, ours = section((3, 3, 3)), section((3, 3, 3), residual=(3,))
    made = plan(theirs, ours, head="copy")
    assert "normal.block_2" in {entry.layer for entry in made.equal}
    assert "normal.block_3" not in {entry.layer for entry in made.equal}
    assert any("residual addition is no in the source and yes here" in note for note in made.notes)


@pytest.mark.slow
@pytest.mark.parametrize("compatibility", ["none", "deepmedic"])
def test_the_full_network_widened_by_two_keeps_its_scores(compatibility: str) -> None:
    def full(factor: int) -> ModelSection:
        widths = tuple(factor * width for width in (30, 30, 40, 40, 40, 40, 50, 50))
        return ModelSection(
            normal=PathwaySection(widths=widths, residual=(4, 6, 8)),
            subsampled=(SubsampledSection(factor=3), SubsampledSection(factor=5)),
            fc=FCSection(
                widths=(250 * factor, 250 * factor),
                kernels=(3, 1, 1),
                padding=("mirror", "valid", "valid"),
                residual=(2,),
            ),
            normalization=NormalizationSection(name="batch_rolling"),
        )

    theirs = build(full(1), seed=1, compatibility=compatibility)
    exact, loose = (build(full(2), seed=2, compatibility=compatibility) for _ in range(2))
    transfer(theirs, exact, extra="zero-cross", head="copy")
    transfer(theirs, loose, head="copy")
    inputs = patches(theirs, 19)
    assert relative_error(theirs, exact, inputs) < EXACT
    assert relative_error(theirs, loose, inputs) > PREFIX
