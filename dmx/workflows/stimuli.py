"""The images of an experiment, and what an image network sees of them."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dmx.cohort.case import Case, Cohort
from dmx.cohort.digest import files_sha256
from dmx.cohort.gather import gather_stimuli, stimuli_digest
from dmx.cohort.stimuli import Stimulus, StimulusSet, class_indices, target_values
from dmx.config.sections import Experiment
from dmx.errors import CohortError, ConfigError
from dmx.model.image_facts import image_facts
from dmx.preprocess.image_cache import CachedImages
from dmx.preprocess.image_contract import ImageContract, resolve_image_contract
from dmx.sampling.image_source import ImageSource
from dmx.workflows.checked import SplitCases
from dmx.workflows.data import require_metric_names

CHANNEL = "image"
"""The one channel of the case that an image is for whatever speaks of cases."""


@dataclass(frozen=True)
class ImageData(SplitCases):
    """The images of a training, and what the network sees of them."""

    contract: ImageContract
    stimuli: StimulusSet

    def digest(self) -> str:
        """Return a hash of what the images are, their labels and splits."""
        return stimuli_digest(self.stimuli)

    def table(self, place: Path) -> tuple[str, str]:
        """Return name and text of a table of the images, their paths relative to the folder of a file."""
        return "stimuli.csv", _table(self.stimuli, place.parent)


def _table(stimuli: StimulusSet, folder: Path) -> str:
    columns = list(dict.fromkeys(name for stimulus in stimuli.stimuli for name in stimulus.values))
    class_of = stimuli.class_of_label
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label", "subject", "split", *columns])
    for one in stimuli.stimuli:
        label = "" if one.label is None else stimuli.classes[class_of[one.label]]
        values = [one.values.get(name, "") for name in columns]
        writer.writerow([os.path.relpath(one.path, folder), label, one.group, one.split, *values])
    return text.getvalue()


def resolve_images(experiment: Experiment, *, trains: bool = True) -> ImageData:
    """Choose images, classes or targets as the experiment says; no image is opened.

    Args:
        experiment: The experiment.
        trains: Whether a network is trained on the images, which takes labels or targets.

    Raises:
        CohortError: The sources lack what the experiment needs; the message names file and row.
        ConfigError: The experiment names something that cannot be used.
    """
    section = experiment.stimuli
    assert section is not None
    stimuli = gather_stimuli(section, seed=experiment.seed)
    classes = stimuli.classes if experiment.task == "classification" else ()
    contract = resolve_image_contract(
        experiment.image_preprocess,
        image_facts(experiment.model.name),
        classes=classes,
        labels=stimuli.class_of_label if classes else None,
        targets=section.targets,
    )
    data = image_data(stimuli, contract)
    if experiment.task == "classification":
        require_classes(classes, owner=f"'{section.source}'")
    require_metric_names("target" if section.targets else "class", contract.outputs)
    if trains:
        require_training(data, owner=f"'{section.source}'")
        if section.targets:
            target_values(_seen(stimuli), section.targets)
        else:
            class_indices(_seen(stimuli), stimuli.class_of_label)
            _require_all_classes(stimuli)
    return data


def _seen(stimuli: StimulusSet) -> list[Stimulus]:
    return [*stimuli.in_split("training"), *stimuli.in_split("validation")]


def require_classes(classes: Sequence[str], *, owner: str) -> None:
    """Raise ``ConfigError`` where there are not two classes."""
    if len(classes) < 2:
        raise ConfigError(f"A classification needs at least two classes, {owner} has {list(classes)}.")


def require_training(data: SplitCases, *, owner: str) -> None:
    """Raise ``CohortError`` where there is nothing to learn from."""
    if not data.training:
        raise CohortError(f"{owner} has nothing in split 'training' to learn from.")


def _require_all_classes(stimuli: StimulusSet) -> None:
    class_of = stimuli.class_of_label
    found = {class_of[one.label] for one in stimuli.in_split("training") if one.label is not None}
    for index, name in enumerate(stimuli.classes):
        if index not in found:
            owner = stimuli.file or stimuli.name
            raise CohortError(f"Class '{name}' of '{owner}' has no training images. Add some, or leave it out.")


def image_data(stimuli: StimulusSet, contract: ImageContract) -> ImageData:
    """Return stimuli as cases: what lies in two splits, was seen by a network or is hidden is told by these."""
    hashes = files_sha256(one.path for one in stimuli.stimuli)
    class_of = stimuli.class_of_label
    cases = [
        Case(
            name=one.id,
            # An image that belongs to nobody is known by what it shows: others may have its name.
            subject=one.group or hashes[one.path],
            channels={CHANNEL: one.path},
            split=one.split,
            label=None if one.label is None else class_of[one.label],
            targets=one.values,
        )
        for one in stimuli.stimuli
    ]
    cohort = Cohort(stimuli.name, (), (CHANNEL,), tuple(cases), manifest=stimuli.file, label_classes=stimuli.classes)
    return ImageData(cohort, cohort.in_split("training"), cohort.in_split("validation"), contract, stimuli)


def case_targets(
    cases: Sequence[Case],
    classes: Sequence[str],
    outputs: Sequence[str],
    *,
    task: str,
    read_as: Mapping[str, str] | None = None,
) -> torch.Tensor:
    """Return the class of each case, int64 [cases], -1 where it is unknown; or its numbers, float32 [cases, targets].

    Args:
        cases: Images or volumes.
        classes: Names of what they can be; a case's label is an index of these, or stands for itself without any.
        outputs: Classes or targets in the order of the network's outputs.
        task: ``classification`` or ``regression``.
        read_as: The output that each label, or column of numbers, is; ``None``: the one of the same name.
    """
    names = dict(zip(outputs, outputs, strict=True)) if read_as is None else read_as
    if task == "regression":
        columns = {output: column for column, output in names.items()}
        rows = [[case.targets.get(columns.get(name, name), float("nan")) for name in outputs] for case in cases]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(cases), len(outputs))
    index: Mapping[str, int] = {name: outputs.index(output) for name, output in names.items()}
    labels = [_label(case, classes) for case in cases]
    return torch.tensor([index.get(name, -1) for name in labels], dtype=torch.int64)


def _label(case: Case, classes: Sequence[str]) -> str:
    if case.label is None:
        return ""
    return classes[case.label] if classes else str(case.label)


def image_source(cached: CachedImages, target: torch.Tensor, *, device: torch.device, memory_gb: float) -> ImageSource:
    """Return prepared images for the sampler, on the device that trains where they fit."""
    source = ImageSource(
        ids=tuple(one.id for one in cached.stimuli),
        packed=torch.from_numpy(cached.packed),
        offsets=cached.offsets,
        sizes=cached.sizes,
        target=target,
    )
    return source.on(device, memory_gb=memory_gb)


def without_splits(stimuli: StimulusSet, split: str) -> StimulusSet:
    """Return stimuli of which all are in one split."""
    return replace(stimuli, stimuli=tuple(replace(one, split=split) for one in stimuli.stimuli))
