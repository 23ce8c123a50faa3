"""Freezing in a run: the plan of an experiment, what to say about it, and its artifact."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from dmx.config.sections import Experiment
from dmx.errors import ConfigError
from dmx.model.network import TrainableNetwork
from dmx.tracking.session import ActiveRun
from dmx.training.events import Event, FrozenChecked
from dmx.training.scales import resolve_scales
from dmx.training.settings import FitSettings
from dmx.transfer.freeze import FreezePlan
from dmx.transfer.freeze_parts import compact, network_parts, outermost
from dmx.transfer.freeze_planning import plan_freeze
from dmx.transfer.values import percent

ARTIFACT: Final = "freeze/plan.json"
_SHOWN = 6


def resolve_freezing(experiment: Experiment, network: TrainableNetwork) -> FreezePlan:
    """Return what is frozen when, and check the names of the learning rates too.

    A parameter that requires no gradient (``requires_grad_(False)`` before the training) counts as frozen for good, as
    if ``freeze.layers`` named it: a layer all of whose parameters are frozen keeps its statistics, too.

    Raises:
        ConfigError: A position or name does not exist, or nothing is left to train.
    """
    parts = network_parts(network)
    resolve_scales(experiment.optimizer.lr_scale, parts, None)
    plan, section = plan_freeze(experiment.freeze, parts), experiment.freeze
    flagged = [
        name
        for name, parameter in network.named_parameters()
        if not parameter.requires_grad and name not in plan.parameters
    ]
    if not flagged:
        return plan
    layers = (section.layers,) if isinstance(section.layers, str) else section.layers
    named = (*layers, *compact([*plan.parameters, *flagged], parts.modules))
    return replace(plan_freeze(replace(section, layers=named), parts), flagged=tuple(flagged))


def flag_sentences(plan: FreezePlan) -> list[str]:
    """Say which layers are frozen because their parameters require no gradient."""
    if not plan.flagged:
        return []
    names = outermost([name for name in plan.layers if any(f"{one}.".startswith(f"{name}.") for one in plan.flagged)])
    more = len(names) - _SHOWN
    listed = ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
    kept = "stay as they are" if plan.norm_statistics == "frozen" else "follow the data"
    return [f"Frozen by requires_grad=False: {listed}. Norm statistics of layers that are frozen whole {kept}."]


def check_origin(
    experiment: Experiment,
    settings: FitSettings,
    network: TrainableNetwork,
    *,
    received: Mapping[str, str],
    strict: bool,
) -> list[str]:
    """Return what is to be said about freezing, knowing where the weights come from.

    Args:
        experiment: Settings.
        settings: Settings of the training core.
        network: The network.
        received: Parameter → how it came from a source; empty: none did.
        strict: Whether a frozen layer that is still as initialized is an error.

    Raises:
        ConfigError: A setting needs a source that is not there, or `strict` finds something.
    """
    resolve_scales(experiment.optimizer.lr_scale, network_parts(network), received)
    if experiment.regularization.l2_to_source and "copied" not in received.values():
        raise ConfigError(
            "regularization.l2_to_source needs weights to pull to, but no tensor comes whole from a source. Leave it "
            "out, or start from another run."
        )
    plan = settings.freeze
    sentences = flag_sentences(plan)
    if plan:
        share = plan.num_frozen_parameters() / plan.num_parameters
        sentences.append(
            f"Frozen: {plan.num_frozen_parameters():,} of {plan.num_parameters:,} parameters ({percent(share)})."
        )
    untrained = plan.untrained(received)
    if untrained:
        more = len(untrained) - _SHOWN
        listed = ", ".join(untrained[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
        sentence = f"these layers are frozen although they are, at least in part, as they were initialized: {listed}."
        if strict:
            raise ConfigError(f"With --strict, {sentence} Freeze others, or leave --strict out.")
        sentences.append(f"Warning: {sentence}")
    late = [epoch for epoch in plan.epochs if epoch >= experiment.training.epochs]
    if late:
        sentences.append(
            f"Warning: freeze.unfreeze names epoch {', '.join(map(str, late))}, but the last epoch of this training is "
            f"{experiment.training.epochs - 1}."
        )
    return sentences


class FreezeFile:
    """A listener that keeps the plan, the hashes of the frozen tensors, and each check of them, as an artifact.

    Args:
        run: The run.
        plan: What is frozen when.
    """

    def __init__(self, run: ActiveRun, plan: FreezePlan) -> None:
        self._run = run
        self._plan = plan

    def __call__(self, event: Event) -> None:
        """Write the artifact anew after each check."""
        if isinstance(event, FrozenChecked):
            content = {**self._plan.as_dict(), "sha256": dict(event.digests), "checks": list(event.checks)}
            self._run.log_text(ARTIFACT, json.dumps(content, indent=2))
