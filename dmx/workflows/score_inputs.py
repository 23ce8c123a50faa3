"""Images or volumes for a network that scores them whole: chosen, prepared and in batches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dmx.cohort.case import Case, Cohort
from dmx.cohort.gather import gather_stimuli, read_stimuli
from dmx.cohort.image_folder import read_loose_images
from dmx.cohort.stimuli import Stimulus, StimulusSet
from dmx.errors import CohortError, ConfigError
from dmx.preprocess.contract import Contract
from dmx.preprocess.image_cache import ImageCache
from dmx.preprocess.image_contract import ImageContract
from dmx.preprocess.pipeline import preprocess_case
from dmx.sampling.batch import Batch
from dmx.sampling.images import ImagesInOrder
from dmx.workflows.labeled_volumes import unmapped
from dmx.workflows.predict import chosen_cases, cohort_of_run
from dmx.workflows.reads import own_source, require_own
from dmx.workflows.session import Session
from dmx.workflows.source import cache_folder
from dmx.workflows.stimuli import case_targets, image_data, image_source
from dmx.workflows.trained import TrainedNetwork
from dmx.workflows.truth_labels import CaseLabels, TruthOutputs, read_case_labels, read_target_columns
from dmx.workflows.volumes import check_scans, require_channels, without_rois

_LISTS = (".csv",)
_SPLITS = ("evaluation", "validation")


@dataclass(frozen=True, kw_only=True)
class ScoreInputs:
    """Images or volumes that a network can score.

    Attributes:
        cohort: They as cases.
        target: Class of each, int64 [cases], -1 where it is unknown; or its numbers, float32 [cases, targets], ``nan``
            where one is unknown.
        batches: They in this order, on the device; may be gone through again and again.
        split: The split that they are; empty: all.
        digest: Hash of what they hold, where they come from a list of images.
        truth: Which output each label or column is; ``None``: only those of the same name are known.
    """

    cohort: Cohort
    target: Tensor
    batches: Iterable[Batch]
    split: str = ""
    digest: str | None = None
    truth: TruthOutputs | None = None


def chosen_inputs(
    trained: TrainedNetwork, inputs: Sequence[Path], *, split: str | None, device: torch.device, session: Session
) -> ScoreInputs:
    """Return what files name: images, a list or folder of images, a manifest, or scans.

    Raises:
        CohortError: Something cannot be read, or nothing is left; the message names file and row.
        ConfigError: The words are nothing that the network reads.
    """
    if isinstance(trained.contract, ImageContract):
        stimuli = _only(_named_images(inputs), split)
        return _image_inputs(trained, trained.contract, stimuli, device=device, session=session, split=split or "")
    cohort = unmapped(chosen_cases(inputs, trained, split=split, session=session))
    return _volume_inputs(trained, trained.contract, cohort, device=device, session=session, split=split or "")


def known_inputs(  # keyword-only
    trained: TrainedNetwork,
    source: Path | None,
    *,
    split: str | None,
    device: torch.device,
    session: Session,
    labels: Mapping[str, str] | None = None,
) -> ScoreInputs:
    """Return images or volumes whose class or numbers are known.

    Args:
        trained: The network.
        source: List or folder of images, or manifest; ``None``: that of the run.
        split: Split; ``None``: evaluation, else validation, else those without one.
        device: Where batches go.
        session: Where prepared images are kept, and whom to tell.
        labels: What the user says: label: class of the network, or column: target, where the names do not say it.

    Raises:
        CohortError: There are none, or it cannot be said which class of the network each is.
    """
    wanted = (split,) if split is not None else (*_SPLITS, "")
    contract = trained.contract
    if isinstance(contract, ImageContract):
        stimuli = _stimuli_of_run(trained, contract) if source is None else read_stimuli(source)
        for name in wanted:
            chosen = replace(stimuli, stimuli=stimuli.in_split(name))
            if chosen.stimuli:
                found = _image_inputs(trained, contract, chosen, device=device, session=session, split=name)
                numbers = dict(zip(stimuli.labels, stimuli.classes, strict=True))
                return _with_truth(found, trained, numbers, given=labels, session=session)
        raise CohortError(f"'{stimuli.name}' has no images in split {_or(wanted)}.")
    cohort = unmapped(cohort_of_run(source, trained))
    owner = f"Checkpoint '{trained.checkpoint_name}' of run '{trained.run.experiment}/{trained.run.name}'"
    require_channels(cohort, contract, owner=owner)
    for name in wanted:
        cases = cohort.in_split(name)
        if cases:
            chosen_cohort = replace(cohort, cases=cases)
            scans = _volume_inputs(trained, contract, chosen_cohort, device=device, session=session, split=name)
            return _with_truth(scans, trained, _numbered(cohort), given=labels, session=session)
    raise CohortError(f"Cohort '{cohort.name}' has no case in split {_or(wanted)}.")


def _numbered(cohort: Cohort) -> dict[int, str]:
    """Return the name of each label of whole cases; a bare integer is its own."""
    if cohort.label_classes:
        return dict(enumerate(cohort.label_classes))
    return {label: str(label) for label in sorted({case.label for case in cohort.cases if case.label is not None})}


def _or(splits: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in splits)


def _with_truth(
    found: ScoreInputs,
    trained: TrainedNetwork,
    numbered: Mapping[int, str],
    *,
    given: Mapping[str, str] | None,
    session: Session,
) -> ScoreInputs:
    """Return cases with the network's class of each, or all numbers.

    Args:
        found: The cases.
        trained: The network.
        numbered: Label in the file: name of its class.
        given: What the user says of labels or columns.
        session: Whom to tell.

    Raises:
        CohortError: One has none that the network knows.
    """
    cohort, outputs = found.cohort, trained.contract.outputs
    if trained.task == "regression":
        truth = read_target_columns(trained, cohort, given=given, session=session)
    else:
        occurring = frozenset(numbered[case.label] for case in cohort.cases if case.label is not None)
        labels = CaseLabels(
            cohort=cohort.name, names=tuple(numbered.values()), numbers=tuple(numbered), found=occurring
        )
        truth = read_case_labels(trained, labels, given=given, session=session)
    target = case_targets(cohort.cases, cohort.label_classes, outputs, task=trained.task, read_as=truth.outputs)
    unknown = target.isnan().any(dim=1) if target.is_floating_point() else target < 0
    if bool(unknown.any()):
        case = cohort.cases[int(unknown.nonzero()[0])]
        raise CohortError(
            f"'{case.name}' of '{cohort.name}' has none of what run '{trained.run.experiment}/{trained.run.name}' "
            f"predicts ({', '.join(outputs)}), so it cannot be scored."
        )
    return replace(found, target=target, truth=truth)


def _stimuli_of_run(trained: TrainedNetwork, contract: ImageContract) -> StimulusSet:
    own_source(trained.run, trained.experiment)
    section = trained.experiment.stimuli
    if section is None:
        raise CohortError(f"Run '{trained.run.experiment}/{trained.run.name}' names no images: give a list of them.")
    stimuli = gather_stimuli(section, seed=trained.experiment.seed)
    require_own(trained.run, trained.seen(), image_data(stimuli, contract).cohort)
    return stimuli


def _named_images(inputs: Sequence[Path]) -> StimulusSet:
    first = inputs[0]
    if len(inputs) == 1 and (first.suffix.lower() in _LISTS or first.is_dir()):
        return read_loose_images(first) or read_stimuli(first)
    for path in inputs:
        if path.suffix.lower() in _LISTS or path.is_dir():
            raise ConfigError(f"Give one list or folder of images, or image files, got '{path}' among others.")
        if not path.is_file():
            raise CohortError(f"There is no image '{path}'.")
    stimuli = tuple(Stimulus(str(path), path.absolute(), place=f"Image '{path}'") for path in inputs)
    return StimulusSet("files", stimuli)


def _only(stimuli: StimulusSet, split: str | None) -> StimulusSet:
    if split is None:
        return stimuli
    chosen = stimuli.in_split(split)
    if not chosen:
        raise CohortError(f"'{stimuli.name}' has no images in split '{split}'.")
    return replace(stimuli, stimuli=chosen)


def _image_inputs(  # keyword-only
    trained: TrainedNetwork,
    contract: ImageContract,
    stimuli: StimulusSet,
    *,
    device: torch.device,
    session: Session,
    split: str,
) -> ScoreInputs:
    data = image_data(stimuli, contract)
    cached = ImageCache(cache_folder(session.root)).prepare(
        stimuli.stimuli, contract, progress=session.progress("preparing images")
    )
    target = case_targets(data.cohort.cases, data.cohort.label_classes, contract.outputs, task=trained.task)
    section = trained.experiment
    size = max(section.prediction.batch_size, section.training.batch_size)
    source = image_source(cached, target, device=device, memory_gb=section.sampling.memory_gb)
    return ScoreInputs(
        cohort=data.cohort,
        target=target,
        batches=ImagesInOrder(source, contract, batch_size=size, device=device),
        split=split,
        digest=data.digest(),
    )


@dataclass(frozen=True)
class _Scans:
    """Volumes in order, each prepared when it is needed."""

    cases: Sequence[Case]
    contract: Contract
    target: Tensor
    device: torch.device

    def __iter__(self) -> Iterator[Batch]:
        for index, case in enumerate(self.cases):
            channels = torch.from_numpy(preprocess_case(case, self.contract).channels)
            target = self.target[index : index + 1].to(self.device)
            yield Batch((channels[None].to(self.device),), target, (case.name,))


def _volume_inputs(  # keyword-only
    trained: TrainedNetwork,
    contract: Contract,
    cohort: Cohort,
    *,
    device: torch.device,
    session: Session,
    split: str,
) -> ScoreInputs:
    if sentence := without_rois(cohort, contract):
        session.warn(sentence)
    check_scans(cohort, contract, session, with_labels=False)
    target = case_targets(cohort.cases, cohort.label_classes, contract.outputs, task=trained.task)
    batches = _Scans(cohort.cases, contract, target, device)
    return ScoreInputs(cohort=cohort, target=target, batches=batches, split=split)
