"""The three plots of a training: loss of each epoch, loss of each step, scores."""

from pathlib import Path

from dmx.errors import ConfigError
from dmx.evaluation.figures import figure_png
from dmx.evaluation.history import History, course_figures
from dmx.tracking.course import course, read_course
from dmx.tracking.history import History as Table
from dmx.tracking.history import as_numbers
from dmx.tracking.mlflow_store import open_store
from dmx.tracking.session import ActiveRun
from dmx.workflows.session import Session

_LABELS = {"segmentation": "Dice", "classification": "accuracy", "regression": "R²"}


def log_course(run: ActiveRun, *, task: str) -> None:
    """Draw them from the tables of a run that has just trained, as its artifacts."""
    with run.guarded("figures/epoch_loss.png"):
        epochs, steps = (
            as_numbers(Table(run.files / "history" / f"{name}.csv").rows()) for name in ("epochs", "steps")
        )
        if epochs:
            for name, figure in course_figures(
                History(**course(epochs, steps, task=task)), label=_LABELS[task]
            ).items():
                run.log_figure(f"figures/{name}.png", figure)


def write_course(run: str, folder: Path, session: Session, *, uri: str | None = None) -> list[Path]:
    """Write the plots of a run as PNG files.

    Raises:
        RunError: There is no such run, or it has not trained.
        ConfigError: The folder cannot be written.
    """
    store = open_store(uri, session.root)
    info = store.find_run(run)
    history = History(**read_course(store, info))
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in course_figures(history, label=_LABELS[info.tags.get("dmx.task", "segmentation")]).items():
            written.append(folder / f"{name}.png")
            written[-1].write_bytes(figure_png(figure))
    except OSError as error:
        raise ConfigError(f"'{folder}' cannot be written: {error.strerror or error}. Choose another folder.") from error
    return written
