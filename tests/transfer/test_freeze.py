"""What is frozen when, and every sentence for what cannot be."""

from collections import OrderedDict
from typing import Any

import pytest
from torch import nn

from dmx.config.freeze import FreezeSection, freeze_overrides, parse_positions
from dmx.config.load import apply_overrides, as_yaml, build_experiment
from dmx.config.model import FCSection, ModelSection, PathwaySection, SubsampledSection
from dmx.config.yaml_loader import parse_yaml
from dmx.errors import ConfigError
from dmx.model.build import build_network
from dmx.transfer.freeze import NEVER, FreezePlan
from dmx.transfer.freeze_parts import NetworkParts, network_parts
from dmx.transfer.freeze_planning import plan_freeze


@pytest.fixture(scope="module")
def parts() -> NetworkParts:
    """4 normal positions, 4 and 2 subsampled ones, fc with 3, the head included."""
    section = ModelSection(
        normal=PathwaySection(widths=(2, 2, 2, 2)),
        subsampled=(SubsampledSection(), SubsampledSection(widths=(2, 2), factor=5)),
        fc=FCSection(widths=(3, 3)),
    )
    return network_parts(build_network(section, num_channels=1, num_classes=2))


@pytest.fixture(scope="module")
def plain() -> NetworkParts:
    """A network without pathways, whose dropout lies between its layers."""
    layers = OrderedDict(
        conv_1=nn.Conv3d(1, 2, 3),
        norm=nn.BatchNorm3d(2),
        act=nn.ReLU(),
        drop=nn.Dropout(0.5),
        conv_2=nn.Conv3d(2, 2, 3),
        head=nn.Conv3d(2, 2, 1),
    )
    return network_parts(nn.ModuleDict({"features": nn.Sequential(layers)}))


def layers_of(plan: FreezePlan, epoch: int = 0) -> set[str]:
    """Return blocks, or modules of another network, of which a parameter is frozen."""
    return {".".join(name.split(".")[:2]) for name in plan.frozen_parameters(epoch)}


def freeze(parts: NetworkParts, **words: Any) -> FreezePlan:
    return plan_freeze(FreezeSection(**words), parts)


@pytest.mark.parametrize(
    ("value", "positions"),
    [
        (2, (2,)),
        ("1-3", (1, 2, 3)),
        ("4,1-2", (1, 2, 4)),
        ((3, "1-2"), (1, 2, 3)),
        ("all", None),
        ("none", ()),
        ((), ()),
    ],
)
def test_positions_are_read(value: Any, positions: tuple[int, ...] | None) -> None:
    assert parse_positions(value) == positions


@pytest.mark.parametrize("value", ["3-1", "0", 0, "first", "1..3", "-1"])
def test_positions_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="normal: positions"):
        FreezeSection(normal=value)


def test_the_command_line_says_the_same_as_the_file() -> None:
    base = {"name": "x", "cohort": {"manifest": "a.csv"}}
    words = ["normal=1-2", "fc=1", "layers=a.*,b", "subsampled=none", "norm_statistics=updating", "unfreeze.3.fc=1"]
    said = build_experiment(apply_overrides(base, freeze_overrides(words))).freeze
    assert said == FreezeSection(
        normal=("1-2",),
        fc=("1",),
        layers=("a.*", "b"),
        subsampled=("none",),
        norm_statistics="updating",
        unfreeze={3: {"fc": ("1",)}},
    )
    mirrored = build_experiment(apply_overrides(base, freeze_overrides(["subsampled=same_as_normal"]))).freeze
    assert mirrored == FreezeSection()
    for word in ("normal", "normal=", "=1"):
        with pytest.raises(ConfigError, match="--freeze takes"):
            freeze_overrides([word])


def test_one_of_several_subsampled_pathways_is_named(parts: NetworkParts) -> None:
    base = {"name": "x", "cohort": {"manifest": "a.csv"}}
    words = ["subsampled_1=1-2", "subsampled.subsampled_2=none", "subsampled_1=4"]
    said = build_experiment(apply_overrides(base, freeze_overrides(words))).freeze
    assert said.subsampled == {"subsampled_1": ("1-2", "4"), "subsampled_2": ("none",)}
    assert plan_freeze(said, parts).positions == {
        "normal": (),
        "subsampled_1": (1, 2, 4),
        "subsampled_2": (),
        "fc": (),
    }
    assert freeze_overrides(["all_but_head"]) == ['freeze.layers=["all_but_head"]']
    with pytest.raises(ConfigError, match="all subsampled pathways and subsampled_1 as well"):
        freeze_overrides(["subsampled=1", "subsampled_1=2"])


def test_the_resolved_file_is_read_again() -> None:
    raw = {
        "name": "x",
        "cohort": {"manifest": "/a.csv"},
        "freeze": {"normal": "1-3", "subsampled": {"subsampled_1": [1]}, "unfreeze": {5: {"normal": [2]}}},
    }
    experiment = build_experiment(raw)
    assert experiment.freeze.unfreeze == {5: {"normal": (2,)}}
    assert build_experiment(parse_yaml(as_yaml(experiment))) == experiment


def test_nothing_is_frozen_by_default(parts: NetworkParts) -> None:
    plan = freeze(parts)
    assert not plan
    assert plan.frozen_tensors(0) == ()
    assert plan.params() == {
        "freeze.normal": "",
        "freeze.subsampled": "",
        "freeze.fc": "",
        "freeze.layers": "",
        "freeze.norm_statistics": "frozen",
        "freeze.unfreeze": "",
        "freeze.num_frozen_parameters": 0,
    }


def test_subsampled_pathways_follow_the_normal_one(parts: NetworkParts) -> None:
    plan = freeze(parts, normal="1-2", fc=1)
    blocks = {f"{pathway}.block_{k}" for pathway in ("normal", "subsampled_1", "subsampled_2") for k in (1, 2)}
    assert layers_of(plan) == blocks | {"fc.block_1"}
    assert plan.params() | {"freeze.num_frozen_parameters": 0} == {
        "freeze.normal": "1,2",
        "freeze.subsampled": "1,2",
        "freeze.fc": "1",
        "freeze.layers": "",
        "freeze.norm_statistics": "frozen",
        "freeze.unfreeze": "",
        "freeze.num_frozen_parameters": 0,
    }
    assert plan.num_frozen_parameters() == sum(plan.sizes.values()) > 0
    assert set(plan.parameters.values()) == {NEVER}


@pytest.mark.parametrize(
    ("subsampled", "blocks"),
    [
        ((), set()),
        ("none", set()),
        ((1,), {"subsampled_1.block_1", "subsampled_2.block_1"}),
        ({"subsampled_2": ()}, {"subsampled_1.block_1", "subsampled_1.block_2"}),
        (
            {"subsampled_1": (4,), "subsampled_2": "same_as_normal"},
            {"subsampled_1.block_4", "subsampled_2.block_1", "subsampled_2.block_2"},
        ),
    ],
)
def test_a_list_replaces_the_mirror(parts: NetworkParts, subsampled: Any, blocks: set[str]) -> None:
    plan = freeze(parts, normal=(1, 2), subsampled=subsampled)
    assert layers_of(plan) == blocks | {"normal.block_1", "normal.block_2"}


def test_different_lists_are_told_by_pathway(parts: NetworkParts) -> None:
    plan = freeze(parts, normal=1, subsampled={"subsampled_1": (2,), "subsampled_2": ()})
    assert plan.params()["freeze.subsampled"] == "subsampled_1: 2; subsampled_2: none"


def test_all_means_all_of_each_pathway(parts: NetworkParts) -> None:
    plan = freeze(parts, normal="all", fc="1-2")
    assert plan.positions == {
        "normal": (1, 2, 3, 4),
        "subsampled_1": (1, 2, 3, 4),
        "subsampled_2": (1, 2),
        "fc": (1, 2),
    }
    same = freeze(parts, layers="all_but_head")
    assert same.parameters == plan.parameters
    assert same.modules == plan.modules
    assert "head" not in layers_of(same)


def test_the_head_is_the_last_position_of_fc(parts: NetworkParts) -> None:
    assert {name.split(".")[0] for name in freeze(parts, fc=3).parameters} == {"head"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"normal": 5, "subsampled": ()}, "freeze.normal names position 5, but pathway 'normal' has positions 1 to 4"),
        ({"fc": "1-4"}, "position 4, but pathway 'fc' has positions 1 to 3, the last of which is the head"),
        (
            {"normal": "1-3"},
            r"pathway 'subsampled_2' has positions 1 to 2 and no 3. Give an explicit list: "
            r"freeze.subsampled: \{subsampled_2: \[1, 2\]\}",
        ),
        ({"subsampled": (3,)}, "position 3, but pathway 'subsampled_2'"),
        ({"subsampled": {"subsampled_3": (1,)}}, "Did you mean 'subsampled_"),
        ({"normal": "all", "fc": "all"}, "nothing to train.*last position of 'fc'"),
        ({"layers": ("*",)}, "nothing to train"),
        ({"layers": "normal.blok_1"}, "fits no module and no parameter.*Did you mean 'normal.block_1'"),
        ({"normal": 1, "unfreeze": {2: {"normal": 2}}}, "position 2, which is not frozen in 'normal'; frozen there: 1"),
        ({"normal": 1, "unfreeze": {2: {"fc": 1}}}, "not frozen in 'fc'; frozen there: nothing"),
        ({"normal": 1, "unfreeze": {2: {"norml": 1}}}, "must name one of.*Did you mean 'normal'"),
        ({"normal": 1, "unfreeze": {2: {"layers": "head"}}}, "'head', of which nothing is frozen"),
    ],
)
def test_what_does_not_exist_is_an_error(parts: NetworkParts, words: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        freeze(parts, **words)


def test_a_network_without_pathways_has_names_only(plain: NetworkParts) -> None:
    with pytest.raises(ConfigError, match=r"no pathway 'normal'\. Name its layers in .*features\.conv_1"):
        freeze(plain, normal=1)
    with pytest.raises(ConfigError, match="no subsampled pathway"):
        freeze(plain, subsampled=(1,))


def test_unfreezing_before_the_first_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="epochs from 1 on, got 0"):
        FreezeSection(normal=1, unfreeze={0: {"normal": 1}})


def test_a_mirrored_pathway_follows_an_unfreezing(parts: NetworkParts) -> None:
    plan = freeze(parts, normal="1-2", fc=1, unfreeze={5: {"normal": 2}, 3: {"fc": 1}})
    assert plan.epochs == (3, 5)
    assert layers_of(plan, 2) == layers_of(plan, 0)
    assert layers_of(plan, 0) - layers_of(plan, 3) == {"fc.block_1"}
    assert layers_of(plan, 4) - layers_of(plan, 5) == {
        f"{p}.block_2" for p in ("normal", "subsampled_1", "subsampled_2")
    }
    assert {name.split(".block")[0] for name in plan.released(5)} == {"normal", "subsampled_1", "subsampled_2"}
    assert plan.released(4) == ()
    assert plan.num_frozen_parameters(5) < plan.num_frozen_parameters(3) < plan.num_frozen_parameters(0)


def test_a_pathway_that_is_named_does_not_follow(parts: NetworkParts) -> None:
    plan = freeze(parts, normal="1-2", unfreeze={2: {"normal": "all"}, 4: {"subsampled_1": "all"}})
    assert layers_of(plan, 2) == {"subsampled_1.block_1", "subsampled_1.block_2"}
    assert layers_of(plan, 4) == set()
    explicit = freeze(parts, normal=1, subsampled=(1,), unfreeze={2: {"normal": 1}})
    assert layers_of(explicit, 9) == {"subsampled_1.block_1", "subsampled_2.block_1"}
    later = freeze(parts, normal=1, unfreeze={2: {"normal": 1}, 4: {"subsampled": 1}})
    assert layers_of(later, 3) == {"subsampled_1.block_1", "subsampled_2.block_1"}


def test_the_earliest_epoch_counts(parts: NetworkParts) -> None:
    plan = freeze(parts, normal="1-2", subsampled=(), unfreeze={6: {"layers": "all"}, 2: {"normal": 1}})
    assert layers_of(plan, 2) == {"normal.block_2"}
    assert plan.epochs == (2, 6)


def test_statistics_stay_or_follow(parts: NetworkParts) -> None:
    frozen = freeze(parts, normal=2, subsampled=())
    buffers = {name for name in parts.buffers if name.startswith("normal.block_2.")}
    assert set(frozen.buffers) == buffers != set()
    assert "normal.block_2.norm" in frozen.inference_modules(0)
    updating = freeze(parts, normal=2, subsampled=(), norm_statistics="updating")
    assert updating.buffers == {}
    assert "normal.block_2.norm" not in updating.inference_modules(0)
    assert "normal.block_2.dropout" in updating.inference_modules(0)
    assert updating.parameters == frozen.parameters


def test_names_of_parameters_freeze_no_module_unless_they_are_all(parts: NetworkParts) -> None:
    only = freeze(parts, layers="normal.block_2.conv.weight")
    assert set(only.parameters) == {"normal.block_2.conv.weight"}
    assert only.inference_modules(0) == {"normal.block_2.conv"}
    whole = freeze(parts, layers=("normal.block_2.*.weight", "normal.block_2.*.bias"))
    assert {"normal.block_2", "normal.block_2.dropout", "normal.block_2.norm"} <= whole.inference_modules(0)
    assert "normal.block_2.norm.running_mean" in whole.buffers


def test_unfreezing_one_kernel_wakes_the_dropout_of_its_block(parts: NetworkParts) -> None:
    plan = freeze(parts, fc=2, unfreeze={3: {"layers": "fc.block_2.conv"}})
    assert {"fc.block_2", "fc.block_2.dropout", "fc.block_2.norm"} <= plan.inference_modules(2)
    assert plan.inference_modules(3) & {"fc.block_2", "fc.block_2.dropout", "fc.block_2.norm"} == {"fc.block_2.norm"}


def test_a_dropout_belongs_to_the_layer_before_it(plain: NetworkParts) -> None:
    assert "features.drop" in freeze(plain, layers="all_but_head").inference_modules(0)
    assert "features.drop" in freeze(plain, layers=("features.conv_1", "features.norm")).inference_modules(0)
    assert "features.drop" not in freeze(plain, layers=("features.conv_1", "features.conv_2")).inference_modules(0)
    by_name = freeze(plain, layers=("features.conv_2", "features.drop"), unfreeze={1: {"layers": "features.drop"}})
    assert "features.drop" in by_name.inference_modules(0)
    assert "features.drop" not in by_name.inference_modules(1)


def test_the_wrapper_of_other_networks_may_be_left_out() -> None:
    inner = nn.ModuleDict({"down": nn.Sequential(nn.Conv3d(1, 2, 3), nn.PReLU()), "last": nn.Conv3d(2, 2, 1)})
    parts = network_parts(nn.ModuleDict({"network": inner}))
    short, long = freeze(parts, layers="down.*"), freeze(parts, layers="network.down.*")
    assert short.parameters == long.parameters
    assert len(short.parameters) == 3
    rest = freeze(parts, layers="all_but_head")
    assert set(parts.parameters) - set(rest.parameters) == {"network.last.weight", "network.last.bias"}
    other_head = network_parts(nn.ModuleDict({"network": inner}), head="network.down.0")
    assert set(parts.parameters) - set(freeze(other_head, layers="all_but_head").parameters) == {
        "network.down.0.weight",
        "network.down.0.bias",
    }


def test_layers_of_other_networks_are_told_by_their_outermost_names(plain: NetworkParts) -> None:
    assert freeze(plain, layers=("features.conv_*", "features.norm")).params()["freeze.layers"] == (
        "features.conv_1,features.conv_2,features.norm"
    )


def test_very_many_layers_are_told_by_the_first_the_last_and_their_number() -> None:
    network = nn.Sequential(*(nn.Linear(1, 1) for _ in range(200)))
    params = freeze(network_parts(network, head="199"), layers="all_but_head").params()
    assert params["freeze.layers"] == "0 … 198 (199 layers)"


def test_what_was_left_initialized_is_named(parts: NetworkParts) -> None:
    plan = freeze(parts, normal=1, subsampled=(), fc=1)
    received = dict.fromkeys(plan.parameters, "copied")
    assert plan.untrained(received) == ()
    assert plan.untrained({**received, "fc.block_1.conv.weight": "sliced"}) == ("fc.block_1.conv",)
    del received["normal.block_1.conv.weight"]
    assert plan.untrained(received) == ("normal.block_1.conv",)


def test_the_plan_as_json_tells_each_stage(parts: NetworkParts) -> None:
    plan = freeze(parts, normal="1-2", subsampled=(), unfreeze={5: {"normal": 2}})
    values = plan.as_dict()
    assert values["positions"] == {"normal": [1, 2], "subsampled_1": [], "subsampled_2": [], "fc": []}
    assert set(values["epochs"]) == {"0", "5"}
    assert values["epochs"]["0"]["inference_modules"] == ["normal.block_1", "normal.block_2"]
    assert values["epochs"]["5"]["inference_modules"] == ["normal.block_1"]
    assert values["epochs"]["5"]["num_frozen_parameters"] == plan.num_frozen_parameters(7)


def test_what_trains_later_is_a_param(parts: NetworkParts) -> None:
    early = freeze(parts, normal="1-2", fc=1, unfreeze={3: {"fc": 1}})
    late = freeze(parts, normal="1-2", fc=1, unfreeze={3: {"fc": 1}, 5: {"normal": 2}})
    assert early.params()["freeze.unfreeze"] == "3: fc.block_1"
    assert str(late.params()["freeze.unfreeze"]).startswith("3: fc.block_1; 5: normal.block_2")
