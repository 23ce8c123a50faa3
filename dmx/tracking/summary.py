"""The readable summary that the MLflow page of a run begins with."""

from collections.abc import Mapping

from dmx.tracking.store import RunInfo

BATCHES = "dmx.batches"
"""Tag of a run whose batches were given in Python: it does not know its data, nor how its network is built."""

_SCORES = (
    "val_volume/dice",
    "val/dice",
    "val/accuracy",
    "val/balanced_accuracy",
    "val/r2",
    "val/loss",
    "train/mean_loss",
)


def training_note(run: RunInfo, progress: str, metrics: Mapping[str, float], names: Mapping[str, str]) -> str:
    """Return the Markdown summary of a training.

    Args:
        run: The run; what its note said at the start comes first.
        progress: Where the training is, in words.
        metrics: The last values.
        names: Checkpoint of each name.
    """
    description = run.tags.get("dmx.description", "")
    rows = [("training", progress)]
    rows += [(f"`{key}`", f"{metrics[key]:.4f}") for key in _SCORES if key in metrics]
    rows += [(f"checkpoint `{name}`", f"`{names[name]}`") for name in ("best", "last") if name in names]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    commands = f"- load: `dmx.load_model('{run.id[:8]}', into=model)`" if BATCHES in run.tags else _commands(run)
    return f"{description}\n\n| | |\n|---|---|\n{table}\n\n{commands}\n".lstrip()


def predict_command(run: RunInfo) -> str:
    """Return the command that predicts with a run: label maps in a folder, or a table of scores."""
    output = "DIR" if run.tags.get("dmx.task", "segmentation") == "segmentation" else "TABLE.csv"
    return f"dmx predict --from-run {run.id[:8]} COHORT_OR_FILES -o {output}"


def _commands(run: RunInfo) -> str:
    return (
        f"- go on: `dmx resume {run.id[:8]}`\n"
        f"- predict: `{predict_command(run)}`\n"
        f"- score: `dmx evaluate --from-run {run.id[:8]} COHORT`"
    )
