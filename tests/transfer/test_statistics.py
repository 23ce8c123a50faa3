"""Normalizations and modes that differ between source and target."""

import pytest
import torch

from dmx.transfer.options import TransferOptions
from dmx.transfer.plan import TransferPlan
from dmx.transfer.planning import plan_transfer
from dmx.transfer.values import TensorPlan
from tests.transfer.networks import build, patches, plan, relative_error, section, sketch, source, transfer

NORM = "normal.block_2.norm"


def entry(made: TransferPlan, name: str) -> TensorPlan:
    return next(tensor for tensor in made.tensors if tensor.name == f"{NORM}.{name}")


def test_rows_of_deepmedic_become_their_mean() -> None:
    theirs = build(section(norm="batch_rolling"), seed=1, compatibility="deepmedic")
    ours = build(section(norm="batch"), seed=2)
    made = transfer(theirs, ours)
    assert torch.allclose(ours.get_buffer(f"{NORM}.running_mean"), theirs.get_buffer(f"{NORM}.means").mean(0))
    assert torch.allclose(ours.get_buffer(f"{NORM}.running_var"), theirs.get_buffer(f"{NORM}.variances").mean(0))
    assert entry(made, "running_mean").action == "adapted"
    assert entry(made, "running_mean").rule == "mean of the rows"
    assert entry(made, "num_batches_tracked").source == f"{NORM}.count"


def test_only_written_rows_count_where_the_source_counts_them() -> None:
    theirs = build(section(norm="batch_rolling", steps=6), seed=1)
    theirs.get_buffer(f"{NORM}.count").fill_(2)
    ours = build(section(norm="batch"), seed=2)
    made = transfer(theirs, ours)
    assert entry(made, "running_mean").rule == "mean of the written rows"
    assert torch.allclose(ours.get_buffer(f"{NORM}.running_mean"), theirs.get_buffer(f"{NORM}.means")[:2].mean(0))
    assert not torch.allclose(ours.get_buffer(f"{NORM}.running_mean"), theirs.get_buffer(f"{NORM}.means").mean(0))


def test_the_other_way_every_row_is_filled_and_counts_as_written() -> None:
    theirs, ours = build(section(norm="batch"), seed=1), build(section(norm="batch_rolling", steps=7), seed=2)
    made = transfer(theirs, ours)
    means = ours.get_buffer(f"{NORM}.means")
    assert torch.equal(means, theirs.get_buffer(f"{NORM}.running_mean").expand(7, -1))
    assert int(ours.get_buffer(f"{NORM}.count")) == 7
    assert entry(made, "means").rule == "every row filled"


def test_another_number_of_rows_is_filled_with_the_mean() -> None:
    theirs = build(section(norm="batch_rolling", steps=6), seed=1)
    ours = build(section(norm="batch_rolling", steps=4), seed=2)
    transfer(theirs, ours)
    wanted = theirs.get_buffer(f"{NORM}.means").mean(0).expand(4, -1)
    assert torch.allclose(ours.get_buffer(f"{NORM}.means"), wanted)
    assert int(ours.get_buffer(f"{NORM}.count")) == 4


@pytest.mark.parametrize(("theirs", "ours"), [("batch", "batch_rolling"), ("batch_rolling", "batch")])
def test_between_both_kinds_of_statistics_the_scores_stay(theirs: str, ours: str) -> None:
    before, after = build(section(norm=theirs), seed=1), build(section(norm=ours), seed=2)
    made = transfer(before, after, head="copy")
    assert relative_error(before, after, patches(before)) < 1e-5
    assert made.equal[-1].layer == "head"
    assert not made.notes


def test_a_wider_ring_keeps_its_new_channels() -> None:
    theirs, ours = build(section((3, 4), norm="batch_rolling"), seed=1), build(section((5, 4), norm="batch"), seed=2)
    fresh = ours.get_buffer(f"{NORM}.running_mean").clone()
    transfer(theirs, ours)
    mean = ours.get_buffer(f"{NORM}.running_mean")
    assert torch.allclose(mean[:3], theirs.get_buffer(f"{NORM}.means").mean(0))
    assert torch.equal(mean[3:], fresh[3:])


def test_what_one_side_lacks_is_initialized_or_unused_and_no_error() -> None:
    made = plan(section(norm="instance"), section(norm="batch"))
    assert entry(made, "running_mean").action == "initialized"
    assert "normal.block_2 of the source has no norm.running_mean" in entry(made, "running_mean").reason
    assert entry(made, "weight").action == "copied"
    made = plan(section(norm="batch"), section(norm="none"))
    unused = {tensor.name for tensor in made.source_tensors if not tensor.used}
    assert {f"{NORM}.weight", f"{NORM}.running_mean"} <= unused
    assert f"{NORM}.bias" not in unused
    assert any("normalization is batch in the source and none here" in note for note in made.notes)


def test_the_two_modes_are_said_to_differ() -> None:
    theirs = source(section(norm="batch_rolling"), compatibility="deepmedic")
    made = plan_transfer(theirs, sketch(section(norm="batch_rolling")), TransferOptions(head="copy"))
    text = " ".join(made.notes)
    for words in (
        "epsilon is 1.18e-38",
        "dropout scaling is 0.5",
        "subsampling is every n-th voxel",
        "statistics is all",
    ):
        assert words in text
    assert {entry.layer for entry in made.equal} == {"normal.block_1"}
    same = plan_transfer(theirs, sketch(section(norm="batch_rolling"), compatibility="deepmedic"))
    assert not same.notes


def test_a_running_mean_that_nobody_counted_fills_a_ring() -> None:
    theirs, ours = build(section(norm="batch"), seed=1), build(section(norm="batch_rolling", steps=5), seed=2)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.num_batches_tracked = None
    made = transfer(theirs, ours)
    assert int(ours.get_buffer(f"{NORM}.count")) == 5
    assert entry(made, "count").rule == "all rows count as written"
