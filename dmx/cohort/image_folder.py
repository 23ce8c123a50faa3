"""A folder of images with a folder per class, read as stimuli.

Either ``root/<class>/…`` or ``root/<split>/<class>/…`` with the splits ``training``, ``validation`` and ``evaluation``.
Images that lie deeper, ``<class>/<group>/image.png``, belong to that group (a person, say) and stay together in splits.
"""

from collections.abc import Sequence
from pathlib import Path

from dmx.cohort.case import SPLITS
from dmx.cohort.labels import natural
from dmx.cohort.manifest import name_problem
from dmx.cohort.stimuli import CONDITION, ID, LABEL, Stimulus, StimulusSet
from dmx.errors import CohortError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".jp2")
"""Endings of files that count as images, in any case; others are passed over."""
_OTHER_NAMES = ("train", "val", "valid", "dev", "test")


def read_image_folder(root: str | Path, *, classes: Sequence[str] = ()) -> StimulusSet:
    """Read a folder of images; they are not opened.

    Args:
        root: The folder.
        classes: Names of the classes in the order of the labels; empty: those of the folders in natural order.

    Raises:
        CohortError: There is no such folder, no class, a class without images or one that nobody named.
    """
    root = Path(root).absolute()
    if not root.is_dir():
        raise CohortError(f"There is no folder of images '{root}'.")
    places = _class_folders(root)
    names = tuple(classes) or tuple(sorted({folder.name for _, folder in places}, key=natural))
    _check_names(root, names, places)
    stimuli: list[Stimulus] = []
    for split, folder in sorted(places, key=lambda place: (SPLITS.index(place[0]), natural(place[1].name))):
        label = names.index(folder.name)
        found = _images(folder)
        if not found:
            endings = ", ".join(SUFFIXES)
            raise CohortError(f"Class '{folder.name}' has no images: '{folder}' has no file with one of {endings}.")
        stimuli += [_stimulus(root, folder, image, label, split) for image in found]
    return StimulusSet(
        name=root.name,
        stimuli=tuple(stimuli),
        classes=names,
        columns=(ID, LABEL, CONDITION),
        file=root,
        labels=tuple(range(len(names))),
    )


def read_loose_images(root: str | Path) -> StimulusSet | None:
    """Read a folder that holds images and no folders: images whose classes nobody knows, which can be predicted.

    Args:
        root: The folder.

    Returns:
        The images in natural order; ``None`` where there are folders, which would be classes, or no images.
    """
    root = Path(root).absolute()
    found = [] if not root.is_dir() or _folders(root) else _images(root)
    stimuli = tuple(Stimulus(image.name, image, place=f"Image '{image}'") for image in found)
    return StimulusSet(root.name, stimuli, file=root) if stimuli else None


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_folders(root: Path) -> list[tuple[str, Path]]:
    """Return the folder of each class, with its split."""
    children = _folders(root)
    names = {child.name for child in children}
    if names and names <= set(SPLITS):
        return [(child.name, folder) for child in children for folder in _folders(child)]
    like_splits = sorted(name for name in names if name.lower() in {*_OTHER_NAMES, *SPLITS})
    if like_splits:
        raise CohortError(
            f"Folder '{root}' has {', '.join(like_splits)} beside or instead of classes. A folder of splits must have "
            f"{', '.join(filter(None, SPLITS))} and nothing else."
        )
    return [("", child) for child in children]


def _check_names(root: Path, names: Sequence[str], places: Sequence[tuple[str, Path]]) -> None:
    if len(names) < 2:
        raise CohortError(f"Folder '{root}' must have a folder for each of at least two classes, got {list(names)}.")
    for name in names:
        if problem := name_problem(name):
            raise CohortError(f"Folder '{root}': the name of a class {problem}.")
    for _, folder in places:
        if folder.name not in names:
            raise CohortError(f"Folder '{folder}' is none of the classes {', '.join(names)}.")
    # Who is not learned from cannot be predicted; a class that only the training has is no mistake.
    learned = {folder.name for split, folder in places if split in ("training", "")}
    if missing := [name for name in names if learned and name not in learned]:
        raise CohortError(f"Class '{missing[0]}' has no images to train with below '{root}'.")


def _images(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted((path for path in found if path.is_file()), key=lambda path: natural(path.as_posix()))


def _stimulus(root: Path, folder: Path, image: Path, label: int, split: str) -> Stimulus:
    inside = image.relative_to(folder).parts
    return Stimulus(
        id=image.relative_to(root).as_posix(),
        path=image,
        label=label,
        condition=folder.name,
        group=inside[0] if len(inside) > 1 else "",
        split=split,
    )
