"""``dmx predict`` and ``dmx evaluate``."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from dmx.cli.config import Trust
from dmx.cli.console import out
from dmx.cli.train import FromRun
from dmx.cli.ui import StoreAddress
from dmx.errors import ConfigError

if TYPE_CHECKING:
    from dmx.config.sections import PredictionSection
    from dmx.workflows.evaluate import Evaluated
    from dmx.workflows.evaluate_scores import EvaluatedScores

_WORDS = {
    "accuracy": "accuracy [95 %]",
    "balanced_accuracy": "balanced accuracy",
    "auc": "AUC",
    "r2": "R²",
    "mse": "mean squared error [95 %]",
}
_NUMBER = re.compile(r"[0-9]{1,6}")

Checkpoint = Annotated[
    str | None, typer.Option("--checkpoint", help="best, last, initial or epoch=N; else the best one, else the last.")
]
Split = Annotated[str | None, typer.Option("--split", help="Only cases of this split of the manifest.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, e.g. prediction.mirror=[0]. May be repeated."),
]
TruthLabels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="LABEL=CLASS,…",
        help="Class of each value in the cohort's label maps, e.g. 17=Anterior,53=Posterior (0 is background); of "
        "whole images and volumes that of each label, or COLUMN=TARGET.",
    ),
]
Name = Annotated[str | None, typer.Option("--name", help="Name of the run.")]
NoRoi = Annotated[
    bool, typer.Option("--no-roi", help="Predict without rois, also where the network was trained with them.")
]


def predict(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="COHORT_OR_FILES",
            help="A manifest, or NIfTI files: one per channel of one case. For images: a list (.stim.csv, .csv), a "
            "folder, or image files.",
        ),
    ],
    from_run: FromRun,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for label maps, or a table .csv for scores.")
    ],
    checkpoint: Checkpoint = None,
    split: Split = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write a probability map per class or region.")
    ] = False,
    features: Annotated[
        list[str] | None,
        typer.Option("--features", metavar="LAYER[=FIRST-LAST]", help="Also write feature maps of a layer."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace predictions that are there.")] = False,
    class_indices: Annotated[
        bool,
        typer.Option(
            "--class-indices", help="Write class indices 0, 1, …, not the values of the training's label maps."
        ),
    ] = False,
    roi: Annotated[
        list[Path] | None,
        typer.Option(
            "--roi", metavar="FILE", help="Roi of single files, one per case; roi.nii.gz beside them is found."
        ),
    ] = None,
    no_roi: NoRoi = False,
    overrides: Overrides = None,
    device: Device = "auto",
    name: Name = None,
    store: StoreAddress = None,
    trust: Trust = None,
) -> None:
    """Predict new scans or images with a run's network: label maps on the scans' own grids, or a table of scores."""
    from dmx.cli.report import TerminalReport, print_result
    from dmx.tracking.location import project_root
    from dmx.workflows.by_task import predict_by_task
    from dmx.workflows.predict import PredictRequest
    from dmx.workflows.session import Session

    with TerminalReport() as report:
        session = Session(root=project_root(Path.cwd()), report=report)
        request = PredictRequest(
            run=from_run,
            inputs=inputs,
            output=output,
            checkpoint=checkpoint,
            split=split,
            probabilities=probabilities,
            features=dict(_layer(word) for word in features or ()),
            settings=prediction_settings(from_run, overrides, store),
            device=device,
            uri=store,
            name=name,
            overwrite=overwrite,
            class_indices=class_indices,
            rois=roi or (),
            no_roi=no_roi,
        )
        done = predict_by_task(request, session)
    seconds = sum(float(str(row["seconds"])) for row in done.rows)
    print_result(
        f"Predicted {len(done.rows)} cases in {seconds:.1f} s into {output}. "
        f"Run {done.run.experiment}/{done.run.name} ({done.run.id[:8]})."
    )


def _layer(word: str) -> tuple[str, tuple[int, int]]:
    """Read ``normal.block_3=0-9``; without a range the first ten channels."""
    name, sign, channels = word.partition("=")
    if not sign:
        return name, (0, 9)
    first, dash, last = channels.partition("-")
    if not _NUMBER.fullmatch(first) or (dash and not _NUMBER.fullmatch(last)):
        raise ConfigError(f"--features takes LAYER=FIRST-LAST, e.g. normal.block_3=0-9, got '{word}'.")
    return name, (int(first), int(last) if dash else int(first))


def prediction_settings(run: str, overrides: list[str] | None, store: str | None) -> "PredictionSection | None":
    """Return the run's prediction settings with changes; ``None`` without any."""
    if not overrides:
        return None
    from dmx.tracking.location import project_root
    from dmx.workflows.trained import changed_prediction

    return changed_prediction(run, overrides, uri=store, root=project_root(Path.cwd()))


def evaluate(
    from_run: FromRun,
    cohort: Annotated[
        Path | None,
        typer.Argument(metavar="COHORT", help="Manifest, or list or folder of images; else that of the run."),
    ] = None,
    checkpoint: Checkpoint = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="Split to score; else evaluation, validation, or cases without one."),
    ] = None,
    allow_leak: Annotated[
        bool, typer.Option("--allow-leak", help="Score cases that were in the training, too; the run gets a tag.")
    ] = False,
    tolerance_mm: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="Tolerance of the normalized surface Dice in mm.")
    ] = 1.0,
    surface: Annotated[
        str, typer.Option("--surface", help="Between what distances are: elements of the surface, or voxels' centers.")
    ] = "elements",
    labels: TruthLabels = None,
    no_roi: NoRoi = False,
    overrides: Overrides = None,
    device: Device = "auto",
    name: Name = None,
    store: StoreAddress = None,
    trust: Trust = None,
) -> None:
    """Score a run's network on cases or images whose truth is known."""
    from dmx.cli.report import TerminalReport
    from dmx.evaluation.surface import SurfaceDefinition, surface_kind
    from dmx.tracking.location import project_root
    from dmx.workflows.by_task import evaluate_by_task
    from dmx.workflows.evaluate import Evaluated, EvaluateRequest
    from dmx.workflows.session import Session

    definition = SurfaceDefinition(kind=surface_kind(surface), tolerance_mm=tolerance_mm)
    with TerminalReport() as report:
        session = Session(root=project_root(Path.cwd()), report=report)
        request = EvaluateRequest(
            run=from_run,
            cohort=cohort,
            checkpoint=checkpoint,
            split=split,
            settings=prediction_settings(from_run, overrides, store),
            surface=definition,
            allow_leak=allow_leak,
            device=device,
            uri=store,
            name=name,
            labels=None if labels is None else label_words(labels),
            no_roi=no_roi,
        )
        done = evaluate_by_task(request, session)
    if isinstance(done, Evaluated):
        _print_scores(done)
    else:
        _print_whole(done)


def label_words(text: str) -> dict[str, str]:
    """Return what ``--labels 17=Anterior,53=Posterior`` says."""
    words: dict[str, str] = {}
    for word in text.split(","):
        value, equals, name = (part.strip() for part in word.partition("="))
        if not (value and equals and name) or value in words:
            raise ConfigError(f"--labels takes LABEL=CLASS,…, each label once, e.g. 17=Anterior, got '{word}'.")
        words[value] = name
    return words


def _print_scores(done: "Evaluated") -> None:
    from dmx.cli.scores import print_scores

    split = f", split {done.split}" if done.split else ""
    # As the table's title it would be wrapped at the table's width.
    out.print(escape(f"{done.cohort}{split}: {len(done.rows)} cases"), soft_wrap=True)
    print_scores(done.table)
    run = f"{done.run.experiment}/{done.run.name} ({done.run.id[:8]})"
    out.print(escape(f"Run {run}; per case: evaluation/cases.csv"), soft_wrap=True)


def _print_whole(done: "EvaluatedScores") -> None:
    """Print what the scores of whole images or volumes are worth."""
    split = f", split {done.split}" if done.split else ""
    summary = done.summary["squared_error" if done.task == "regression" else "accuracy"]
    # As the table's title it would be wrapped at the table's width.
    out.print(escape(f"{done.cohort}{split}: {len(done.rows)} cases"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    names = ("r2", "mse") if done.task == "regression" else ("accuracy", "balanced_accuracy", "auc")
    for name in names:
        value = done.scores[name]
        interval = f" [{summary.low:.3f}, {summary.high:.3f}]" if summary.low is not None else ""
        shown = f"{value:.3f}" if isinstance(value, float) else "-"
        table.add_row(
            _WORDS[name] + _of_outputs(done, name), escape(shown + (interval if name in ("accuracy", "mse") else ""))
        )
    for name in done.outputs if done.task == "classification" else ():
        value = done.scores[f"recall/{name}"]
        words = f"recall of {name} ({done.scores[f'count/{name}']:.0f} cases)"
        table.add_row(escape(words), f"{value:.3f}" if isinstance(value, float) else "-")
    out.print(table)
    run = f"{done.run.experiment}/{done.run.name} ({done.run.id[:8]})"
    out.print(escape(f"Run {run}; per case: evaluation/cases.csv"), soft_wrap=True)


def _of_outputs(done: "EvaluatedScores", name: str) -> str:
    """Say of how many classes or targets a mean is, where it is not that of all."""
    part = {"balanced_accuracy": "recall", "auc": "auc", "r2": "r2"}.get(name)
    if part is None:
        return ""
    known = sum(done.scores[f"{part}/{output}"] is not None for output in done.outputs)
    unit = "targets" if done.task == "regression" else "classes"
    return f" (of {known} of {len(done.outputs)} {unit})" if known < len(done.outputs) else ""
