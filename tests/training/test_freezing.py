"""What is frozen keeps every bit, costs nothing, and begins to train when it is told to."""

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmx import seeding
from dmx.config.freeze import FreezeSection
from dmx.config.model import FCSection, ModelSection, NormalizationSection, PathwaySection
from dmx.config.optimization import OptimizerSection, RegularizationSection
from dmx.config.sections import TrainingSection
from dmx.errors import TrainingError
from dmx.model.build import build_network
from dmx.model.network import Network
from dmx.sampling.batch import Batch
from dmx.training.average import MovingAverage
from dmx.training.events import Event, FrozenChecked, Notice, StepEnded, TrainingStarted
from dmx.training.loop import fit
from dmx.training.losses import Loss
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState, new_state
from dmx.training.step import train_step
from dmx.transfer.freeze import FreezePlan
from dmx.transfer.freeze_apply import digest, digests
from dmx.transfer.freeze_parts import network_parts
from dmx.transfer.freeze_planning import plan_freeze

CLASSES = ("background", "lesion")
FROZEN = FreezeSection(normal=1, fc=1)
BLOCKS = ("normal.block_1.", "subsampled_1.block_1.", "fc.block_1.")


def make(norm: str = "batch", compatibility: str = "none") -> Network:
    section = ModelSection(
        normal=PathwaySection(widths=(3, 3), dropout=0.2),
        fc=FCSection(widths=(4,), dropout=(0.5, 0.5)),
        normalization=NormalizationSection(name=norm, steps=3),
    )
    network = build_network(section, num_channels=1, num_classes=2, compatibility=compatibility)
    with torch.no_grad():
        # Bits that an average or a decay would lose.
        network.get_submodule("fc.block_1.activation").weight[0] = -0.0
    return network


def make_settings(network: Network, freeze: FreezeSection = FROZEN, **changes: Any) -> FitSettings:
    sections: dict[str, Any] = {
        "training": TrainingSection(epochs=3, steps_per_epoch=2, device="cpu"),
        "optimizer": OptimizerSection(name="sgd", lr=0.05),
        "regularization": RegularizationSection(l1=1e-3, l2=1e-2),
        **changes,
    }
    return FitSettings(classes=CLASSES, freeze=plan_freeze(freeze, network_parts(network)), **sections)


def batches_for(network: Network) -> Callable[[int, int, int], Batch]:
    plan = network.segment_plan((9, 9, 9))

    def batches(*key: int) -> Batch:
        place = seeding.derive(1, "batch", *key)
        inputs = tuple(seeding.normal(place, (2, 1, *patch.shape)) for patch in plan.patches)
        target = (seeding.uniform(place, (2, *plan.output_shape)) * 2).long()
        return Batch(inputs=inputs, target=target, cases=("a", "b"))

    return batches


def run(
    state: TrainState,
    settings: FitSettings,
    *listeners: Callable[[Event], None],
    stop: Callable[[], bool] = lambda: False,
) -> list[Event]:
    events: list[Event] = []
    fit(state, batches_for(state.model), settings, listeners=[events.append, *listeners], stop=stop)
    return events


def hashes(tensors: Mapping[str, Tensor], prefixes: Iterable[str] = BLOCKS) -> dict[str, str]:
    return {name: digest(tensor) for name, tensor in tensors.items() if name.startswith(tuple(prefixes))}


def moved(before: Mapping[str, str], model: nn.Module) -> set[str]:
    after = digests(model, before)
    return {name for name in before if before[name] != after[name]}


def all_digests(model: nn.Module) -> dict[str, str]:
    return digests(model, [name for name, _ in (*model.named_parameters(), *model.named_buffers())])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("norm", "compatibility"), [("batch", "none"), ("batch_rolling", "deepmedic")])
@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw"])
def test_frozen_layers_keep_every_bit(name: str, norm: str, compatibility: str, precision: str) -> None:
    """Momentum, weight decay, L1, L2, clipping, accumulation and a moving average all at once."""
    network = make(norm, compatibility)
    settings = make_settings(
        network,
        optimizer=OptimizerSection(name=name, lr=0.02, momentum=0.9, weight_decay=0.1 if name == "adamw" else 0.0),
        training=TrainingSection(
            epochs=2,
            steps_per_epoch=2,
            accumulate=2,
            moving_average=0.5,
            gradient_clip=1.0,
            precision=precision,
            device="cpu",
        ),
        compatibility=compatibility,
    )
    state = new_state(network, settings)
    assert state.average is not None
    before, averaged = all_digests(network), hashes(state.average.tensors)
    run(state, settings)

    changed = moved(before, network)
    assert not [key for key in changed if key.startswith(BLOCKS)]
    assert hashes(state.average.tensors) == averaged
    # The negative: each parameter of the other layers has moved, and so have their statistics.
    free = {key for key, _ in network.named_parameters() if not key.startswith(BLOCKS)}
    assert free <= changed
    assert any("running_mean" in key or "means" in key for key in changed)


@pytest.mark.parametrize("frozen", [True, False])
def test_an_average_keeps_the_bits_of_what_is_frozen_only(frozen: bool) -> None:
    """Where nothing changes an average would still turn -0 into 0, and an infinite value into NaN."""
    layer = nn.Linear(1, 2)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([-0.0, float("inf")]))
    layer.bias.requires_grad_(not frozen)
    average = MovingAverage(layer, 0.99)
    average.updates = 1000
    average.update(layer)
    assert (digest(average.tensors["bias"]) == digest(layer.bias)) is frozen


@pytest.mark.parametrize(("norm", "compatibility"), [("batch", "none"), ("batch_rolling", "deepmedic")])
def test_updating_statistics_move_and_nothing_else(norm: str, compatibility: str) -> None:
    network = make(norm, compatibility)
    section = FreezeSection(normal=(1, 2), norm_statistics="updating")
    settings = make_settings(network, section, compatibility=compatibility)
    before = all_digests(network)
    run(new_state(network, settings), settings)
    changed = {name for name in moved(before, network) if name.startswith(("normal", "subsampled"))}
    names = {name.rpartition(".")[2] for name in changed}
    assert names == (
        {"running_mean", "running_var", "num_batches_tracked"} if norm == "batch" else {"means", "variances", "count"}
    )


def test_model_train_and_foreign_gradients_do_not_undo_it() -> None:
    network = make()
    settings = make_settings(network)
    before = hashes(dict(network.named_parameters()))

    def meddle(event: Event) -> None:
        if isinstance(event, StepEnded):
            network.train()
            for parameter in network.parameters():
                parameter.requires_grad_(True)
                parameter.grad = torch.ones_like(parameter)

    run(new_state(network, settings), settings, meddle)
    assert hashes(dict(network.named_parameters())) == before


def test_the_optimizer_holds_memory_for_what_trains_only() -> None:
    network = make()
    settings = make_settings(network, replace(FROZEN, unfreeze={1: {"fc": 1}}), optimizer=OptimizerSection(name="adam"))
    state = new_state(network, settings)
    # Moments that came along from a source.
    state.optimizer.load_state_dict(
        {
            "state": {"mean": {"normal.block_1.conv.weight": torch.ones(3, 1, 3, 3, 3)}, "square": {}},
            "steps": {"normal.block_1.conv.weight": 9},
        }
    )
    seen: dict[int, set[str]] = {}

    def look(event: Event) -> None:
        if isinstance(event, StepEnded):
            seen[event.epoch] = set(state.optimizer.state["mean"])
            assert set(state.optimizer.steps) == set(state.optimizer.state["square"]) == seen[event.epoch]

    run(state, settings, look)
    everything = {name for name, _ in network.named_parameters()}
    assert seen[0] == {name for name in everything if not name.startswith(BLOCKS)}
    assert seen[1] == {name for name in everything if not name.startswith(BLOCKS[:2])}
    assert state.optimizer.steps["fc.block_1.conv.weight"] == 4
    assert state.optimizer.steps["head.conv.weight"] == 6
    assert len(state.optimizer.parameters) == len(everything)


def graphs(network: Network, settings: FitSettings) -> dict[str, bool]:
    """Train one step and return for each block whether autograd followed it."""
    followed: dict[str, bool] = {}
    for group in network.layer_groups():
        group.modules[0].register_forward_hook(
            lambda _module, _inputs, output, name=group.name: followed.update({name: output.requires_grad})
        )
    loss = Loss(settings.losses, 2)
    train_step(new_state(network, settings), [batches_for(network)(0, 0, 0)], settings, loss=loss, lr=0.1)
    return followed


def test_no_gradient_is_computed_before_the_first_layer_that_trains() -> None:
    network = make()
    section = FreezeSection(normal="all", fc=1)
    followed = graphs(network, make_settings(network, section))
    assert followed == {name: name == "head" for name in followed}
    assert len(followed) == 6

    network = make()
    followed = graphs(network, make_settings(network, FreezeSection(normal=1, fc=1)))
    # Behind a layer that trains a frozen one has to hand the gradient on.
    assert {name for name, follows in followed.items() if not follows} == {"normal.block_1", "subsampled_1.block_1"}

    network = make()
    assert all(graphs(network, make_settings(network, FreezeSection())).values())


@pytest.mark.parametrize("compatibility", ["none", "deepmedic"])
@pytest.mark.parametrize("frozen", [True, False])
def test_dropout_of_a_frozen_layer_acts_as_in_inference(compatibility: str, frozen: bool) -> None:
    network = make("none", compatibility)
    section = FreezeSection(normal="all", fc=1) if frozen else FreezeSection()
    settings = make_settings(network, section, compatibility=compatibility)
    outputs: list[Tensor] = []
    network.get_submodule("fc.block_1").register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    state, loss = new_state(network, settings), Loss(settings.losses, 2)
    batch = batches_for(network)(0, 0, 0)
    network.train()
    for step in range(2):
        state.position = replace(state.position, step=step)
        train_step(state, [batch], settings, loss=loss, lr=1e-12)
    network.eval()
    network(batch.inputs)
    first, second, inference = outputs
    assert torch.equal(first, second) is frozen
    assert torch.equal(first, inference) is frozen


def test_validation_leaves_frozen_layers_in_inference_mode() -> None:
    network = make()
    settings = make_settings(
        network, training=TrainingSection(epochs=1, steps_per_epoch=1, device="cpu", moving_average=0.5)
    )
    state = new_state(network, settings)
    run(state, settings)
    network.get_submodule("normal.block_1").eval()
    modes = {name: module.training for name, module in network.named_modules()}
    with state.evaluation_weights():
        assert not any(module.training for module in network.modules())
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert {True, False} == set(modes.values())


def test_layers_train_from_their_epoch_on() -> None:
    network = make()
    settings = make_settings(network, replace(FROZEN, unfreeze={1: {"normal": 1}}))
    before = hashes({**dict(network.named_parameters()), **dict(network.named_buffers())})
    after_epoch: dict[int, set[str]] = {}

    def look(event: Event) -> None:
        if isinstance(event, StepEnded) and event.step == 2:
            after_epoch[event.epoch] = {name.split(".")[0] for name in moved(before, network)}

    events = run(new_state(network, settings), settings, look)
    assert after_epoch == {0: set(), 1: {"normal", "subsampled_1"}, 2: {"normal", "subsampled_1"}}
    checks = [event for event in events if isinstance(event, FrozenChecked)]
    assert [(check.occasion, check.epoch, check.changed) for check in checks] == [
        ("start", 0, ()),
        ("unfreeze", 1, ()),
        ("end", 3, ()),
    ]
    assert checks[-1].digests == {name: before[name] for name in checks[-1].digests}
    assert set(checks[-1].digests) == set(before)
    assert checks[-1].checks[1]["tensors"] == len([name for name in before if not name.startswith("fc")])
    count = sum(p.numel() for name, p in network.named_parameters() if name.startswith(BLOCKS[:2]))
    assert [event.message for event in events if isinstance(event, Notice)] == [
        f"From epoch 1 on {count} parameters more are trained: normal.block_1, subsampled_1.block_1."
    ]
    started = next(event for event in events if isinstance(event, TrainingStarted))
    assert started.num_parameters == sum(p.numel() for n, p in network.named_parameters() if not n.startswith(BLOCKS))


def test_all_frozen_tensors_released_are_not_checked_at_the_end() -> None:
    network = make()
    settings = make_settings(network, replace(FROZEN, unfreeze={1: {"normal": "all", "fc": "all"}}))
    events = run(new_state(network, settings), settings)
    assert [event.occasion for event in events if isinstance(event, FrozenChecked)] == ["start", "unfreeze"]


def saved(state: TrainState) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("norm", "compatibility"), [("batch", "none"), ("batch_rolling", "deepmedic")])
def test_a_resume_across_an_unfreezing_is_the_uninterrupted_training(
    norm: str, compatibility: str, stop_at: int
) -> None:
    """Before it, at its very beginning, and after it."""

    def fresh() -> tuple[TrainState, FitSettings]:
        network = make(norm, compatibility)
        settings = make_settings(
            network,
            replace(FROZEN, unfreeze={1: {"normal": 1}, 2: {"fc": 1}}),
            training=TrainingSection(epochs=3, steps_per_epoch=2, device="cpu", moving_average=0.9),
            optimizer=OptimizerSection(name="adam", lr=0.02),
            compatibility=compatibility,
        )
        return new_state(network, settings), settings

    whole, settings = fresh()
    losses = [event.loss for event in run(whole, settings) if isinstance(event, StepEnded)]
    broken, settings = fresh()
    first = run(broken, settings, stop=lambda: broken.position.global_step == stop_at)
    resumed, settings = fresh()
    resumed.load_state_dict(saved(broken))
    second = run(resumed, settings)
    assert [event.loss for event in (*first, *second) if isinstance(event, StepEnded)] == losses
    assert all_digests(resumed.model) == all_digests(whole.model)
    assert whole.average is not None
    assert resumed.average is not None
    assert hashes(resumed.average.tensors, ("",)) == hashes(whole.average.tensors, ("",))
    assert resumed.optimizer.steps == whole.optimizer.steps
    assert resumed.origin.digests == whole.origin.digests

    # The negative: a resume that forgets the plan is another training, until nothing is frozen any more.
    other, settings = fresh()
    other.load_state_dict(saved(broken))
    run(other, replace(settings, freeze=FreezePlan()))
    assert (all_digests(other.model) != all_digests(whole.model)) is (stop_at < 4)


@pytest.mark.parametrize(("at_step", "occasion"), [(1, "unfreeze"), (3, "end")])
def test_a_frozen_tensor_that_changes_is_an_error(at_step: int, occasion: str) -> None:
    network = make()
    frozen = FreezeSection(normal=1, fc=1, unfreeze={1: {"normal": 1}})
    settings = make_settings(network, frozen)
    target = "normal.block_1.conv.weight" if occasion == "unfreeze" else "fc.block_1.norm.running_var"
    checks: list[FrozenChecked] = []

    def tamper(event: Event) -> None:
        if isinstance(event, StepEnded) and event.global_step == at_step:
            tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
            tensors[target].data.add_(1e-3)
        if isinstance(event, FrozenChecked):
            checks.append(event)

    with pytest.raises(TrainingError, match=f"Frozen tensors were changed .*: {target}. Last checkpoint: none yet"):
        run(new_state(network, settings), settings, tamper)
    assert (checks[-1].occasion, checks[-1].changed) == (occasion, (target,))


def test_a_checkpoint_whose_frozen_weights_differ_is_noticed() -> None:
    network = make()
    settings = make_settings(network)
    state = new_state(network, settings)
    run(state, settings, stop=lambda: state.position.global_step == 1)
    content = saved(state)
    content["model"]["fc.block_1.conv.weight"] += 1.0
    resumed = new_state(make(), settings)
    resumed.load_state_dict(content)
    with pytest.raises(TrainingError, match=r"fc\.block_1\.conv\.weight"):
        run(resumed, settings)


def test_a_checkpoint_from_before_there_was_freezing_goes_on() -> None:
    network = make()
    settings = make_settings(network)
    state = new_state(network, settings)
    run(state, settings, stop=lambda: state.position.global_step == 1)
    content = saved(state)
    del content["training"]["origin"]
    resumed = new_state(make(), settings)
    resumed.load_state_dict(content)
    events = run(resumed, settings)
    assert [event.occasion for event in events if isinstance(event, FrozenChecked)] == ["start", "end"]


def test_a_step_holds_what_is_frozen_whatever_the_mode_of_the_network() -> None:
    network = make()
    settings = make_settings(network)
    state = new_state(network, settings)
    before = hashes({**dict(network.named_parameters()), **dict(network.named_buffers())})
    network.train()
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    batch = batches_for(network)(0, 0, 0)
    train_step(state, [batch], settings, loss=Loss(settings.losses, 2), lr=0.1)
    assert not moved(before, network)
    assert before
