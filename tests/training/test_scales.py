"""Learning rates per part of the network, and the pull to the weights of a source."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmx import seeding
from dmx.config.model import FCSection, ModelSection, PathwaySection
from dmx.config.optimization import OptimizerSection, RegularizationSection
from dmx.config.sections import TrainingSection
from dmx.errors import ConfigError
from dmx.model.build import build_network
from dmx.model.network import Network
from dmx.sampling.batch import Batch
from dmx.training.events import StepEnded
from dmx.training.loop import fit
from dmx.training.losses import add_source_penalty
from dmx.training.scales import resolve_scales
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState, new_state
from dmx.transfer.freeze_parts import network_parts


def make() -> Network:
    section = ModelSection(normal=PathwaySection(widths=(3, 3)), fc=FCSection(widths=(4,), dropout=(0.0, 0.0)))
    return build_network(section, num_channels=1, num_classes=2)


def batches_for(network: Network) -> Callable[[int, int, int], Batch]:
    plan = network.segment_plan((9, 9, 9))

    def batches(*key: int) -> Batch:
        place = seeding.derive(1, "batch", *key)
        inputs = tuple(seeding.normal(place, (2, 1, *patch.shape)) for patch in plan.patches)
        target = (seeding.uniform(place, (2, *plan.output_shape)) * 2).long()
        return Batch(inputs=inputs, target=target, cases=("a", "b"))

    return batches


def make_settings(steps: int = 1, *, l2_to_source: float = 0.0, **optimizer: Any) -> FitSettings:
    return FitSettings(
        classes=("background", "lesion"),
        training=TrainingSection(epochs=1, steps_per_epoch=steps, device="cpu"),
        optimizer=OptimizerSection(**{"name": "sgd", "lr": 0.05, **optimizer}),
        regularization=RegularizationSection(l1=0.0, l2=0.0, l2_to_source=l2_to_source),
    )


def weights(network: Network) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def trained(settings: FitSettings, *, received: dict[str, str] | None = None) -> tuple[TrainState, list[StepEnded]]:
    network = make()
    state = new_state(network, settings, received=received)
    events: list[StepEnded] = []
    fit(
        state,
        batches_for(network),
        settings,
        listeners=[lambda event: events.append(event) if isinstance(event, StepEnded) else None],
    )
    return state, events


ALL_COPIED = {name: "copied" for name, _ in make().named_parameters()}


@pytest.mark.parametrize("compatibility", ["none", "deepmedic"])
@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw"])
def test_updates_are_scaled_by_the_factor(name: str, compatibility: str) -> None:
    settings = make_settings(name=name, weight_decay=0.3 if name == "adamw" else 0.0)
    settings = replace(settings, compatibility=compatibility)
    scaled = replace(settings, optimizer=replace(settings.optimizer, lr_scale={"fc": 0.1, "head.conv.bias": 3.0}))
    before, plain = weights(make()), weights(trained(settings)[0].model)
    changed = weights(trained(scaled)[0].model)
    for key, value in before.items():
        factor = 3.0 if key == "head.conv.bias" else 0.1 if key.startswith(("fc", "head")) else 1.0
        assert torch.allclose(changed[key] - value, factor * (plain[key] - value), rtol=1e-3, atol=1e-7), key
        assert not torch.equal(plain[key], value)


def test_a_name_overrules_a_pathway_and_a_pathway_the_origin() -> None:
    parts = network_parts(make())
    scales = {
        "head.*": 5.0,
        "fc": 4.0,
        "subsampled": 3.0,
        "received": 0.1,
        "initialized": 2.0,
        "head.conv.weight": 6.0,
    }
    resolved = resolve_scales(
        scales, parts, {"normal.block_1.conv.weight": "sliced", "fc.block_1.conv.weight": "copied"}
    )
    assert resolved["normal.block_1.conv.weight"] == 0.1
    assert resolved["normal.block_2.conv.weight"] == 2.0
    assert resolved["subsampled_1.block_2.conv.weight"] == 3.0
    assert resolved["fc.block_1.conv.weight"] == 4.0
    assert resolved["head.conv.bias"] == 5.0
    assert resolved["head.conv.weight"] == 6.0
    assert set(resolved) == set(parts.parameters)
    assert resolve_scales({"subsampled_1": 1.0, "received": 0.1}, parts, None) == {}


@pytest.mark.parametrize(
    ("scales", "sentence"),
    [
        ({"received": 0.1}, "names 'received', but this training begins with initialized weights"),
        ({"receeved": 0.1}, "Did you mean 'received'"),
        ({"normal.*.gain": 0.1}, "fits no module and no parameter"),
    ],
)
def test_a_factor_for_nothing_is_an_error(scales: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        trained(make_settings(lr_scale=scales))
    with pytest.raises(ValueError, match=r"lr_scale\.fc must be above 0, got 0"):
        OptimizerSection(lr_scale={"fc": 0.0})


def test_a_network_without_subsampled_pathways_has_no_rate_for_them() -> None:
    network = build_network(ModelSection(subsampled=()), num_channels=1, num_classes=2)
    with pytest.raises(ConfigError, match="no subsampled pathway"):
        resolve_scales({"subsampled": 0.1}, network_parts(network), {})


def test_the_pull_is_the_gradient_of_its_penalty() -> None:
    moved = torch.tensor([2.0, -1.0], requires_grad=True)
    free, frozen = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    for parameter in (moved, free):
        parameter.grad = torch.full((2,), 0.5)
    sources = {"moved": torch.tensor([1.0, 1.0]), "frozen": torch.ones(2)}
    parameters = {"moved": moved, "free": free, "frozen": frozen}
    section = RegularizationSection(l2_to_source=0.1)
    terms = add_source_penalty(parameters, sources, section)
    assert terms["l2_to_source"].item() == pytest.approx(5.0)
    penalty = 0.1 * (moved - sources["moved"]).square().sum()
    (expected,) = torch.autograd.grad(penalty, moved)
    assert torch.allclose(moved.grad, 0.5 + expected)
    assert torch.equal(free.grad, torch.full((2,), 0.5))
    assert frozen.grad is None
    assert add_source_penalty(parameters, sources, RegularizationSection()) == {}
    assert add_source_penalty({"frozen": frozen}, sources, section)["l2_to_source"] == 0.0


def test_the_pull_keeps_weights_near_their_source() -> None:
    before = weights(make())

    def distance(l2_to_source: float) -> tuple[float, float, list[StepEnded]]:
        received = {name: how for name, how in ALL_COPIED.items() if not name.startswith("head")}
        state, events = trained(make_settings(6, l2_to_source=l2_to_source, momentum=0.0), received=received)
        gaps = {name: float((w - before[name]).norm()) for name, w in weights(state.model).items()}
        return max(gaps[name] for name in received), gaps["head.conv.weight"], events

    free, pulled = distance(0.0), distance(8.0)
    assert pulled[0] < 0.5 * free[0]
    assert pulled[1] > 0.8 * free[1]
    last = pulled[2][-1]
    assert last.terms["l2_to_source"] > 0.0
    assert last.loss == pytest.approx(last.terms["cross_entropy"] + 8.0 * last.terms["l2_to_source"])
    assert "l2_to_source" not in free[2][-1].terms


def test_only_what_came_whole_is_pulled() -> None:
    received = {"head.conv.weight": "sliced", "head.conv.bias": "adapted", "fc.block_1.conv.weight": "copied"}
    assert set(new_state(make(), make_settings(l2_to_source=0.1), received=received).origin.sources) == {
        "fc.block_1.conv.weight"
    }
    with pytest.raises(ConfigError, match="l2_to_source needs weights to pull to"):
        trained(make_settings(l2_to_source=0.1), received={"head.conv.weight": "sliced"})


def test_a_resume_pulls_to_the_same_source_with_the_same_rates() -> None:
    settings = make_settings(4, l2_to_source=2.0, lr_scale={"received": 0.5})
    received = {name: how for name, how in ALL_COPIED.items() if name.startswith("fc")}
    whole, _ = trained(settings, received=received)

    network = make()
    broken = new_state(network, settings, received=received)
    fit(broken, batches_for(network), settings, stop=lambda: broken.position.global_step == 2)
    content = broken.state_dict()
    # A resume knows nothing of the source but what the state tells; the network that it builds has other weights.
    other = make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2.0)
    resumed = new_state(other, settings)
    resumed.load_state_dict(content)
    fit(resumed, batches_for(other), settings)
    assert all(torch.equal(value, weights(whole.model)[name]) for name, value in weights(other).items())

    forgetful = new_state(make(), settings)
    del content["training"]["origin"]
    forgetful.load_state_dict(content)
    with pytest.raises(ConfigError):
        fit(forgetful, batches_for(forgetful.model), settings)
