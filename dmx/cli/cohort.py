"""``dmx cohort``: describe, check, split and look at scans."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from dmx.cli.console import err, out
from dmx.errors import CohortError, suggest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dmx.cohort.case import Cohort
    from dmx.cohort.check import CheckReport
    from dmx.cohort.check_images import ImageReport

app = typer.Typer(
    help="Describe, check, split and look at the scans or images of a study.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


class Kind(Enum):
    """Which demonstration cohort."""

    A = "A"
    B = "B"


Manifest = Annotated[Path, typer.Argument(help="Manifest (CSV) of the cohort.", show_default=False)]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="VALUE=CLASS,…",
        help="Class of each value in the label maps where it is not the class's index, e.g. 4=enhancing.",
    ),
]
Output = Annotated[Path, typer.Option("--output", "-o", help="Manifest to write.", show_default=False)]


@app.command("import")
def import_(
    source: Annotated[
        Path,
        typer.Argument(help="dataset.json, DeepMedic .cfg or table, or a folder.", show_default=False),
    ],
    output: Output,
    *,
    channel: Annotated[
        list[str] | None,
        typer.Option(help="NAME=PATTERN of a channel's files, e.g. t1='sub-{subject}/anat/*_T1w.nii.gz'; repeat it."),
    ] = None,
    label_map: Annotated[str | None, typer.Option(help="Pattern of the label maps.")] = None,
    roi: Annotated[str | None, typer.Option(help="Pattern of the rois.")] = None,
    weight: Annotated[list[str] | None, typer.Option(help="NAME=PATTERN of sampling weight maps; repeat it.")] = None,
    classes: Annotated[str, typer.Option(help="Names of the classes, background first, separated by commas.")] = "",
    labels: Labels = None,
    channel_names: Annotated[
        str, typer.Option(help="Names of the channels of a dataset.json, in its order, separated by commas.")
    ] = "",
    name: Annotated[str | None, typer.Option(help="Name of the cohort.")] = None,
    subject: Annotated[
        str | None, typer.Option(help="Regular expression whose group finds the subject in a case's name.")
    ] = None,
) -> None:
    """Write a manifest for scans that other files, or name patterns, describe.

    Reads the [bold]dataset.json[/] of the Medical Segmentation Decathlon and of
    nnU-Net, DeepMedic's [bold].cfg[/] files and tables, and with [bold]--channel[/]
    any folder with regular names, such as BIDS derivatives.

    Patterns are paths below the folder with *, **/, {subject}, {session} and
    {split}; without {subject}, sub-LABEL and ses-LABEL of BIDS count.
    """
    from dmx.cohort.importers import import_cohort
    from dmx.cohort.importers.pattern import Patterns
    from dmx.cohort.manifest import write_manifest

    patterns = Patterns(_pairs("--channel", channel), label_map, roi, _pairs("--weight", weight))
    with _progress("Reading") as progress:
        imported = import_cohort(
            source,
            patterns=patterns,
            split_dir=output.parent / f"{output.stem}_channels",
            classes=tuple(classes.split(",")) if classes else (),
            channels=tuple(part.strip() for part in channel_names.split(",")) if channel_names else (),
            labels=labels.split(",") if labels else (),
            name=name,
            subject=subject,
            progress=progress,
        )
    write_manifest(imported.cohort, output)
    for note in imported.notes:
        err.print(f"[yellow]Note:[/] {escape(note)}")
    cohort = imported.cohort
    out.print(
        f"{_counted(len(cohort.cases), 'case')} of {_counted(len(cohort.subjects), 'subject')}, "
        f"channels {escape(', '.join(cohort.channels))}, "
        f"{escape(_outputs(cohort))}: {escape(str(output))}",
        soft_wrap=True,
    )
    out.print(f"Next: dmx cohort check {escape(str(output))}", soft_wrap=True)


def _outputs(cohort: "Cohort") -> str:
    names = ", ".join(cohort.regions.members) if cohort.regions else _class_words(cohort)
    words = f"{'regions' if cohort.regions else 'classes'} {names}"
    return words if cohort.ignore is None else f"{words}, {cohort.ignore} ignored"


@app.command()
def make(
    kind: Annotated[Kind, typer.Argument(help="A: like strokes, 2 classes. B: like tumors, 4 classes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for scans and manifest.", show_default=False)],
    *,
    cases: Annotated[int, typer.Option(help="Number of cases.")] = 24,
    spacing: Annotated[float, typer.Option(help="Voxel size in mm, 1 to 8.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Another seed makes other heads.")] = 0,
    processes: Annotated[int, typer.Option(min=1, help="Processes that make cases.")] = 1,
) -> None:
    """Make a demonstration cohort: heads that never lived, with lesions whose outline is known exactly."""
    from dmx.cohort.demo import make_demo_cohort

    with _progress("Making") as progress:
        cohort = make_demo_cohort(
            output,
            kind.value,
            cases=cases,
            spacing_mm=spacing,
            seed=seed,
            processes=processes,
            progress=lambda done, total, _: progress(done, total),
        )
    splits = ", ".join(f"{len(cohort.in_split(name))} {name}" for name in ("training", "validation", "evaluation"))
    out.print(
        f"{escape(cohort.name)}: {len(cohort.cases)} cases ({splits}): {escape(str(cohort.manifest))}", soft_wrap=True
    )


@app.command()
def check(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="Manifest of scans; or images: a .stim.csv, a table or a folder.", show_default=False
        ),
    ],
    fill: Annotated[
        list[str] | None, typer.Option(help="Channel that cases may lack, as the experiment fills it; repeat it.")
    ] = None,
    labels: Labels = None,
    validation: Annotated[Path | None, typer.Option(help="Images for validation that another source has.")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="Images for evaluation that another source has.")] = None,
    spacing: Annotated[
        str | None,
        typer.Option(metavar="MM", help="Also say what this voxel size leaves of each class: 2, or 1,1,3 (R, A, S)."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Hash every file anew, whatever is remembered of its size and times.")
    ] = False,
) -> None:
    """Read every file and list all that is wrong; exit code 2 on an error."""
    from dmx.cli.checked import print_findings, print_images
    from dmx.cohort.findings import labels_hint
    from dmx.cohort.gather import lists_images

    more = {name: path for name, path in (("validation", validation), ("evaluation", evaluation)) if path is not None}
    report: CheckReport
    if lists_images(source):
        for option, given in (
            ("fill is for channels of", fill),
            ("labels is for", labels),
            ("spacing is for", spacing),
        ):
            if given:
                raise CohortError(f"--{option} scans, '{source}' lists images.")
        report = images = _check_images(source, more, fresh=fresh)
        print_images(images)
        print_findings(images, cases="images")
    else:
        if more:
            raise CohortError(f"--{next(iter(more))} is for images, '{source}' is a manifest: it has a column 'split'.")
        report = _check_scans(source, fill or (), labels, fresh=fresh)
        print_findings(report)
        if hint := labels_hint(report.errors):
            out.print(escape(hint), soft_wrap=True)
        if spacing and not report.errors:
            _print_kept(_labeled(source, labels), spacing)
    if report.errors:
        raise typer.Exit(2)


def _check_images(source: Path, more: "Mapping[str, Path]", *, fresh: bool) -> "ImageReport":
    from dmx.cohort.check_images import check_images
    from dmx.cohort.gather import read_stimuli

    stimuli = read_stimuli(source, require_files=False)
    others = {split: read_stimuli(path, require_files=False) for split, path in more.items()}
    with _progress("Checking") as progress:
        return check_images(stimuli, others, fresh=fresh, progress=progress)


def _check_scans(manifest: Path, fill: "Sequence[str]", labels: str | None, *, fresh: bool) -> "CheckReport":
    from dmx.cohort.check import check_cohort

    cohort = _labeled(manifest, labels)
    for name in fill:
        if name not in cohort.channels:
            near = suggest(name, cohort.channels)
            raise CohortError(
                f"--fill names the channel '{name}', '{manifest}' has {', '.join(cohort.channels)}.{near}"
            )
    with _progress("Checking") as progress:
        return check_cohort(cohort, fill=fill, fresh=fresh, progress=progress)


def _labeled(manifest: Path, labels: str | None) -> "Cohort":
    """Return a cohort with what the user says of the values in its label maps."""
    from dmx.cohort.label_values import with_label_values
    from dmx.cohort.manifest import read_manifest

    cohort = read_manifest(manifest)
    return with_label_values(cohort, labels.split(","), owner="--labels") if labels else cohort


def _print_kept(cohort: "Cohort", text: str) -> None:
    """Print what a voxel size would leave of each class."""
    from dmx.preprocess.kept import kept_warnings, resampled_volumes

    try:
        sizes = [float(size) for size in text.split(",")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 3) or not all(0 < size < math.inf for size in sizes):
        raise CohortError(f"--spacing must be one voxel size in mm or three, such as 2 or 1,1,3, got '{text}'.")
    x, y, z = sizes * 3 if len(sizes) == 1 else sizes
    with _progress("Resampling") as progress:
        rows = resampled_volumes(cohort, (x, y, z), progress=progress)
    table = Table("class", "cases", "left (mean)", "least", "most", "vanished")
    for name in dict.fromkeys(row.name for row in rows):
        shares = [row.share for row in rows if row.name == name]
        numbers = (f"{value:.1%}" for value in (sum(shares) / len(shares), min(shares), max(shares)))
        table.add_row(escape(name), str(len(shares)), *numbers, str(shares.count(0.0)))
    out.print(table)
    for sentence in kept_warnings(rows, spacing=(x, y, z)):
        err.print(f"[yellow]Warning:[/] {escape(sentence)}", soft_wrap=True)


@app.command()
def show(
    manifest: Manifest,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the pictures.", show_default=False)],
    case: Annotated[list[str] | None, typer.Option(help="Only this case; repeat it.")] = None,
) -> None:
    """Write a picture per case: channels, label map, intensities and class volumes."""
    from dmx.cohort.manifest import read_manifest
    from dmx.cohort.show import show_cohort

    cohort = read_manifest(manifest)
    with _progress("Drawing") as progress:
        shown = show_cohort(cohort, output, names=case or (), progress=progress)
    classes = list(dict.fromkeys(name for one in shown for name in one.volumes_ml))
    table = Table("case", *(f"{escape(name)} (ml)" for name in classes), "picture")
    for one in shown:
        volumes = (f"{one.volumes_ml[name]:.2f}" if name in one.volumes_ml else "" for name in classes)
        table.add_row(escape(one.name), *volumes, escape(str(one.picture)))
    out.print(table)


@app.command()
def split(
    manifest: Manifest,
    output: Output,
    *,
    training: Annotated[
        float | None, typer.Option(help="Share of the subjects for training; 0.8 where no share is given.")
    ] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share for validation during the training; 0.2 where no share is given.")
    ] = None,
    evaluation: Annotated[float | None, typer.Option(help="Share held out for the evaluation.")] = None,
    fold: Annotated[
        int | None, typer.Option(help="Take this fold (from 0) for validation instead; evaluation stays held out.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Number of folds.")] = 5,
    seed: Annotated[int, typer.Option(help="Another seed is another split.")] = 0,
) -> None:
    """Split a cohort by subject; the same seed is the same split, whatever the order of the rows."""
    from dmx.cohort.manifest import read_manifest, write_manifest
    from dmx.cohort.splits import k_fold, split_by_subject

    cohort = read_manifest(manifest)
    if fold is None:
        shares = {"training": training, "validation": validation, "evaluation": evaluation}
        fractions = {name: share for name, share in shares.items() if share is not None}
        cohort = split_by_subject(cohort, fractions=fractions or {"training": 0.8, "validation": 0.2}, seed=seed)
    else:
        cohort = k_fold(cohort, fold=fold, folds=folds, seed=seed)
    write_manifest(cohort, output)
    for name in ("training", "validation", "evaluation"):
        cases = cohort.in_split(name)
        out.print(f"{name}: {_counted(len(cases), 'case')} of {_counted(len({c.subject for c in cases}), 'subject')}")


def _class_words(cohort: "Cohort") -> str:
    from dmx.cohort.label_values import values_text

    if cohort.label_values:
        return values_text(cohort.label_values, cohort.classes)
    return ", ".join(cohort.classes) or "not named"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    """Return NAME=PATTERN options by name."""
    pairs: dict[str, str] = {}
    for text in texts or ():
        name, equals, pattern = text.partition("=")
        if not (name and equals and pattern) or name in pairs:
            raise CohortError(f"{option} must be NAME=PATTERN, each name once, got '{text}'.")
        pairs[name] = pattern
    return pairs


@contextmanager
def _progress(word: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal, and nothing elsewhere."""
    from rich.progress import Progress

    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(word, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
