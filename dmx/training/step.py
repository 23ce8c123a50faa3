"""One optimizer update."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from dmx.config.sections import TrainingSection
from dmx.errors import TrainingError
from dmx.sampling.batch import Batch
from dmx.seeding import derive
from dmx.training.device import lay_out, seed_generators
from dmx.training.losses import Loss, add_penalties, add_source_penalty, with_auxiliary
from dmx.training.position import Position
from dmx.training.settings import FitSettings
from dmx.training.state import TrainState
from dmx.transfer.freeze_apply import hold

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step has measured.

    Attributes:
        loss: The weighted sum of the terms, penalties included.
        terms: Each term before its weight.
        gradient_norm: Norm of the gradient before clipping.
        num_segments: Segments seen.
        skipped: Whether the loss scaler left the update out.
    """

    loss: float
    terms: dict[str, float]
    gradient_norm: float
    num_segments: int
    skipped: bool


@dataclass(frozen=True)
class Parts:
    """What the passes of a step have measured, in their order.

    Attributes:
        values: Loss and terms of each, still on the device.
        cases: Cases of all.
    """

    values: list[dict[str, Tensor]]
    cases: list[str]


class Helpers(Protocol):
    """Other processes that do a share of the passes of each step."""

    def begin(self, state: TrainState) -> None:
        """Let them begin with their parts of the step."""
        ...

    def finish(self, state: TrainState) -> Parts:
        """Wait for them, and add gradients, statistics and counts to those of this process."""
        ...


def own_parts(training: TrainingSection, process: int) -> range:
    """Return which parts of a step a process does; processes count from 0."""
    share = training.accumulate // training.processes
    return range(process * share, (process + 1) * share)


def train_step(
    state: TrainState,
    batches: Iterable[Batch],
    settings: FitSettings,
    *,
    loss: Loss,
    lr: float,
    helpers: Helpers | None = None,
) -> StepResult:
    """Update the network, which is in training mode but for what is frozen, once; the caller moves the position on.

    The generators of torch are set from (seed, epoch, step, part) before each forward pass, so dropout depends on
    nothing that happened before.

    Args:
        state: The training.
        batches: One batch per forward pass (``training.accumulate`` of them); their gradients are averaged. With
            helpers only those of the parts of this process, which are the first.
        settings: Settings.
        loss: The loss without penalties.
        lr: Learning rate.
        helpers: Processes that do the other parts.

    Raises:
        TrainingError: Loss or gradient are NaN or infinite, which is noticed before the network is changed; or memory
            runs out.
    """
    hold(state.model, settings.freeze, state.position.epoch)
    state.optimizer.zero_grad()
    if helpers is not None:
        helpers.begin(state)
    parts = run_parts(state, batches, settings, loss=loss)
    values, cases = parts.values, parts.cases
    if helpers is not None:
        others = helpers.finish(state)
        values, cases = values + others.values, cases + others.cases
    if state.scaler is not None:
        state.scaler.unscale_(cast(torch.optim.Optimizer, state.optimizer))
    penalties = add_penalties(state.model.kernel_parameters(), settings.regularization)
    penalties |= add_source_penalty(state.optimizer.parameters, state.origin.sources, settings.regularization)
    norm = _clip(state.optimizer.gradients(), settings.training.gradient_clip)
    result = _read(values, {**penalties, "gradient_norm": norm}, settings=settings, num_segments=len(cases))
    _require_finite(result, state, cases)
    _update(state, lr, skipped=result.skipped)
    return result


def run_parts(
    state: TrainState, batches: Iterable[Batch], settings: FitSettings, *, loss: Loss, first: int = 0
) -> Parts:
    """Do passes of a step one after the other and add up their gradients.

    Args:
        state: The training, at the step.
        batches: One per pass.
        settings: Settings.
        loss: The loss without penalties.
        first: Number of the first pass in the step.

    Raises:
        TrainingError: Memory runs out, or nothing is left to be learned.
    """
    values: list[dict[str, Tensor]] = []
    cases: list[str] = []
    for part, batch in enumerate(batches, start=first):
        with _explained(batch):
            values.append(_backward(state, batch, settings, loss=loss, part=part))
        cases.extend(batch.cases)
    return Parts(values, cases)


def _backward(state: TrainState, batch: Batch, settings: FitSettings, *, loss: Loss, part: int) -> dict[str, Tensor]:
    """Add the gradient of one batch and return its loss and terms, still on the device."""
    training = settings.training
    position = state.position
    seed_generators(derive(settings.seed, "step", position.epoch, position.step, part), state.device)
    inputs = [lay_out(patch, channels_last=training.channels_last) for patch in batch.inputs]
    dtype = DTYPES[training.precision]
    with torch.autocast(state.device.type, dtype=dtype, enabled=dtype is not None):
        logits, *auxiliary = state.forward(inputs)
    epoch = exact_epoch(position, settings)
    value = loss(logits, batch.target, epoch=epoch)
    if auxiliary:
        value = with_auxiliary(
            value,
            [loss(scores, batch.target, epoch=epoch).total for scores in auxiliary],
            weight=state.model.auxiliary_weight,
        )
    if not value.total.requires_grad:
        raise TrainingError("The network has nothing to learn: all its layers are frozen. Leave one to be learned.")
    total = value.total / training.accumulate
    torch.autograd.backward(total if state.scaler is None else state.scaler.scale(total))
    state.record.counts.add(logits.detach(), batch.target)
    return {"loss": value.total.detach(), **value.terms}


def exact_epoch(position: Position, settings: FitSettings) -> float:
    """Return the epochs done, with a fraction within an epoch; whole epochs in compatibility mode, as in DeepMedic."""
    if settings.compatibility == "deepmedic":
        return float(position.epoch)
    return position.epoch + position.step / settings.training.steps_per_epoch


@torch.no_grad()
def _clip(gradients: list[Tensor], limit: float | None) -> Tensor:
    """Return the norm of all gradients together, and shorten them to the limit."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if limit is not None:
        torch._foreach_mul_(gradients, torch.clamp(limit / (norm + 1e-6), max=1.0))
    return norm


def _read(
    values: list[dict[str, Tensor]], extra: dict[str, Tensor], *, settings: FitSettings, num_segments: int
) -> StepResult:
    """Bring everything that was measured from the device in one transfer, the only time that a step waits for it."""
    names = [*values[0], *extra]
    means = [torch.stack([value[name] for value in values]).mean() for name in values[0]]
    numbers = dict(zip(names, torch.stack([*means, *extra.values()]).tolist(), strict=True))
    norm = numbers.pop("gradient_norm")
    penalty = settings.regularization
    weights = {"l1": penalty.l1, "l2": penalty.l2, "l2_to_source": penalty.l2_to_source}
    loss = numbers.pop("loss") + sum(weight * numbers.get(name, 0.0) for name, weight in weights.items())
    return StepResult(
        loss=loss,
        terms=numbers,
        gradient_norm=norm,
        num_segments=num_segments,
        skipped=settings.training.precision == "fp16" and not math.isfinite(norm),
    )


def _require_finite(result: StepResult, state: TrainState, cases: list[str]) -> None:
    """Raise before the update when it would ruin the network."""
    norm_matters = state.scaler is None
    if math.isfinite(result.loss) and (math.isfinite(result.gradient_norm) or not norm_matters):
        return
    what = "gradient" if math.isfinite(result.loss) else "loss"
    value = result.gradient_norm if what == "gradient" else result.loss
    terms = ", ".join(f"{name} {number:g}" for name, number in result.terms.items())
    position = state.position
    raise TrainingError(
        f"The {what} became {value} at step {position.global_step + 1} (epoch {position.epoch}, step "
        f"{position.step + 1} of it) with the cases {', '.join(dict.fromkeys(cases))}; terms: {terms}. The network was "
        f"not changed by it; last good checkpoint: {state.last_checkpoint or 'none yet'}. Check these cases, or lower "
        "optimizer.lr or set training.gradient_clip."
    )


def _update(state: TrainState, lr: float, *, skipped: bool) -> None:
    """Change the network, and what follows its steps."""
    if state.scaler is None:
        state.optimizer.step(lr)
    else:
        state.scaler.step(cast(torch.optim.Optimizer, state.optimizer), lr)
        state.scaler.update()
        if skipped and state.scaler.get_scale() < 1.0:
            raise TrainingError(
                f"The gradient exceeds the range of fp16 whatever the loss scale is (step "
                f"{state.position.global_step + 1}); last good checkpoint: {state.last_checkpoint or 'none yet'}. "
                "Use training.precision 'bf16' or 'fp32'."
            )
    state.model.after_step()
    if state.average is not None:
        state.average.update(state.model)


class MemoryTooSmallError(TrainingError):
    """Report a pass that needs more memory than the device has."""


def _too_small(batch: Batch) -> str:
    """Say what needs too much memory, and what to lower."""
    shapes = ", ".join("x".join(str(size) for size in patch.shape[2:]) for patch in batch.inputs)
    segments = batch.target.dim() == 4
    what = f"segments per pass with patches of {shapes} voxels" if segments else f"inputs of {shapes} per pass"
    size = "sampling.segment" if segments else "their size"
    return (
        f"The memory of '{batch.target.device}' is too small for {len(batch.cases)} {what}. Lower training.batch_size "
        f"(and raise training.accumulate to keep the step as it is), or {size}, or use training.precision 'bf16'."
    )


@contextmanager
def _explained(batch: Batch) -> Iterator[None]:
    """Turn what torch says about memory and determinism into a sentence that names the settings."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        out_of_memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text
        if out_of_memory:
            raise MemoryTooSmallError(_too_small(batch)) from error
        if "does not have a deterministic implementation" in text:
            raise TrainingError(
                f"{text.partition(' does not')[0]} has no deterministic form on '{batch.target.device}'. Set "
                "training.deterministic: false, or use another network or padding."
            ) from error
        raise
