"""DeepMedic's own losses, gradients and steps (golden/tiny_train.npz, beside the repository)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmx.config.model import FCSection, ModelSection, NormalizationSection, PathwaySection, SubsampledSection
from dmx.config.optimization import LossSection, OptimizerSection, RegularizationSection
from dmx.config.sections import TrainingSection
from dmx.model.build import build_network
from dmx.sampling.batch import Batch
from dmx.training.losses import Loss
from dmx.training.optimizers import Optimizer
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState, new_state
from dmx.training.step import StepResult, train_step

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "tiny_train.npz"
pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason=f"{GOLDEN} is not here")

SETTINGS = ["rms_nest_nonnorm", "rms_nest_norm", "rms_classic_norm", "sgd_nest_nonnorm", "adam"]
NAMES = {0: "sgd", 1: "adam", 2: "rmsprop"}
PATHWAYS = {"norm": "normal", "sub0": "subsampled_1"}
LAYERS = {
    "BiasLayer.b": "norm.bias",
    "ConvolutionalLayer.w": "conv.weight",
    "BatchNormLayer.g": "norm.weight",
    "BatchNormLayer.b": "norm.bias",
    "BatchNormLayer.array_mus_for_moving_avg": "norm.means",
    "BatchNormLayer.array_vars_for_moving_avg": "norm.variances",
    "PreluLayer.a": "activation.weight",
}
# A bias before a batch normalization: its true gradient is 0, what is left is rounding, which adam blows up to a step
# that then shifts the mean behind it.
WITHOUT_GRADIENT = tuple(
    f"{pathway}.{name}" for pathway in PATHWAYS.values() for name in ("block_1.norm.bias", "block_2.norm.means")
)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def dmx_name(semantic: str) -> str:
    pathway, _, rest = semantic.partition(".")
    if pathway == "softmax":
        return "head.conv.bias"
    block, _, layer = rest.partition(".")
    prefix = "head" if pathway == "fc" else f"{PATHWAYS[pathway]}.block_{int(block.removeprefix('block')) + 1}"
    return f"{prefix}.{LAYERS[layer]}"


def variables(golden: dict[str, np.ndarray], folder: str) -> dict[str, torch.Tensor]:
    named = {dmx_name(semantic): f"{folder}/{name}" for semantic, name in golden["varmap"]}
    return {name: torch.from_numpy(golden[key]) for name, key in named.items() if key in golden}


def fit_settings(golden: dict[str, np.ndarray], tag: str) -> FitSettings:
    kind, lr, momentum, nesterov, normalized = golden[f"{tag}/opt"]
    overlap = tag.startswith("sgd")
    return FitSettings(
        classes=("background", "a", "b", "c", "d"),
        training=TrainingSection(device="cpu"),
        optimizer=OptimizerSection(
            name=NAMES[int(kind)],
            lr=float(lr),
            momentum=float(momentum),
            nesterov=bool(nesterov),
            normalized_momentum=bool(normalized),
        ),
        losses=LossSection(soft_iou=0.5 if overlap else 0.0, soft_dice=0.25 if overlap else 0.0),
        regularization=RegularizationSection(l1=1e-6, l2=1e-4),
        compatibility="deepmedic",
    )


def start(golden: dict[str, np.ndarray], settings: FitSettings) -> TrainState:
    section = ModelSection(
        normal=PathwaySection(widths=(4, 5, 6)),
        subsampled=(SubsampledSection(factor=3),),
        fc=FCSection(widths=(), dropout=0.0),
        normalization=NormalizationSection(name="batch_rolling"),
    )
    network = build_network(section, num_channels=2, num_classes=5, compatibility="deepmedic")
    network.load_state_dict({**network.state_dict(), **variables(golden, "init")})
    return new_state(network, settings)


def batch(golden: dict[str, np.ndarray], step: int) -> Batch:
    part = slice(10 * step, 10 * step + 10)
    inputs = tuple(torch.from_numpy(golden[name][part]) for name in ("x0", "x1"))
    return Batch(inputs=inputs, target=torch.from_numpy(golden["y"][part]).long(), cases=("case",) * 10)


def run(
    golden: dict[str, np.ndarray], state: TrainState, settings: FitSettings, steps: Iterable[int]
) -> list[StepResult]:
    loss = Loss(settings.losses, 5, compatibility=settings.compatibility)
    return [train_step(state, [batch(golden, step)], settings, loss=loss, lr=settings.optimizer.lr) for step in steps]


def largest_difference(golden: dict[str, np.ndarray], folder: str, values: dict[str, Any]) -> float:
    wanted = variables(golden, folder)
    if folder.startswith("adam"):
        wanted = {name: tensor for name, tensor in wanted.items() if name not in WITHOUT_GRADIENT}
    assert len(wanted) > 20
    # The statistics reach 8 and carry the rounding of a float32 sum over 20,000 voxels.
    return max(
        float((values[name] - tensor).abs().max()) / (10.0 if name.endswith(("means", "variances")) else 1.0)
        for name, tensor in wanted.items()
    )


@pytest.mark.parametrize("tag", SETTINGS)
def test_gradients_and_steps_are_deepmedics(golden: dict[str, np.ndarray], tag: str) -> None:
    settings = fit_settings(golden, tag)
    state = start(golden, settings)

    first = run(golden, state, settings, [0])
    grads = {name: parameter.grad for name, parameter in state.model.named_parameters()}
    assert largest_difference(golden, f"{tag}/grad0", grads) < 1e-5
    assert largest_difference(golden, f"{tag}/after1", state.model.state_dict()) < 1e-5

    rest = run(golden, state, settings, [1, 2, 3])
    costs = [result.loss for result in (*first, *rest)]
    assert costs == pytest.approx(golden[f"{tag}/costs"], abs=1e-5)
    assert largest_difference(golden, f"{tag}/after4", state.model.state_dict()) < 1e-5


def test_loss_terms_are_deepmedics(golden: dict[str, np.ndarray]) -> None:
    settings = fit_settings(golden, "sgd_nest_nonnorm")
    (result,) = run(golden, start(golden, settings), settings, [0])
    names = {"cross_entropy": "xentr", "soft_iou": "iou", "soft_dice": "dsc", "l1": "L1", "l2": "L2"}
    for ours, theirs in names.items():
        assert result.terms[ours] == pytest.approx(
            float(golden[f"sgd_nest_nonnorm/loss0/{theirs}"]), rel=1e-6, abs=1e-5
        )


@pytest.mark.parametrize("tag", SETTINGS)
def test_first_step_from_deepmedics_own_gradients(golden: dict[str, np.ndarray], tag: str) -> None:
    settings = fit_settings(golden, tag)
    wanted, grads = variables(golden, f"{tag}/after1"), variables(golden, f"{tag}/grad0")
    begin = variables(golden, "init")

    def largest(compatibility: Any) -> float:
        parameters = {name: torch.nn.Parameter(begin[name].clone()) for name in grads}
        for name, parameter in parameters.items():
            parameter.grad = grads[name].clone()
        Optimizer(parameters.items(), settings.optimizer, compatibility=compatibility).step(settings.optimizer.lr)
        return max(float((parameters[name] - wanted[name]).detach().abs().max()) for name in grads)

    assert largest("deepmedic") < 1e-6
    if tag != "sgd_nest_nonnorm":
        # The default definitions differ, so the comparison can fail.
        assert largest("none") > 1e-5
