"""The exception family. The command line shows one sentence and ends with exit code 2."""

from collections.abc import Iterable
from difflib import get_close_matches


class DmxError(Exception):
    """Report a problem that the user can solve: what, got, allowed, what to do."""


class ConfigError(DmxError):
    """Report an experiment or an option that cannot be used."""


class CohortError(DmxError):
    """Report a manifest, a scan or a label map that cannot be used."""


class ModelError(DmxError):
    """Report a network that cannot be built or does not fit its input."""


class CheckpointError(DmxError):
    """Report a checkpoint that is missing, damaged or does not fit."""


class TransferError(DmxError):
    """Report weights that cannot go from one network to another."""


class TrainingError(DmxError):
    """Report a training that cannot go on."""


class RunError(DmxError):
    """Report a run that cannot be found, read or written."""


def suggest(name: str, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest allowed name, or an empty string.

    >>> suggest("epoch", ["epochs", "seed"])
    " Did you mean 'epochs'?"
    """
    near = get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""
