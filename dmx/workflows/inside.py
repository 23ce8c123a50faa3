"""What layers of a run's network give for cases: each case runs through the network once, for all layers."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dmx.cohort.case import Case, Cohort
from dmx.config.sections import PredictionSection
from dmx.errors import ConfigError
from dmx.evaluation.layer_outputs import Layers, Pooling, layer_outputs
from dmx.evaluation.tiling import Predictor
from dmx.evaluation.volume_layers import volume_layers
from dmx.preprocess.image_contract import ImageContract
from dmx.preprocess.pipeline import preprocess_case
from dmx.workflows.predict import chosen_cases, cohort_of_run
from dmx.workflows.reads import own_source, require_own
from dmx.workflows.score_inputs import chosen_inputs, known_inputs
from dmx.workflows.session import Session
from dmx.workflows.trained import Trained, TrainedNetwork
from dmx.workflows.volumes import case_predictor, check_scans, with_rois

Outputs = Iterator[Mapping[str, Tensor]]
Wanted = Pooling | Literal["none", "auto"]


@dataclass(frozen=True, kw_only=True)
class LayerRequest:
    """Which network looks at what, and which of its layers are wanted.

    Attributes:
        run: Id, unique prefix, ``experiment/run-name`` or ``experiment/last``.
        inputs: What the network reads, as for a prediction: one manifest, NIfTI files, a list or folder of images;
            empty: what the run was trained on.
        layers: Names of layers, or for each name which part of it.
        pool: How the voxels or pixels become one number per channel; ``auto``: the mean over the voxels of volumes,
            and all pixels of images.
        checkpoint: Name of the checkpoint; ``None``: the best one, else the last one.
        split: Only cases of this split; ``None``: all.
        settings: Changes of the run's ``prediction`` section.
        device: Where the network runs.
        uri: Run store.
        name: Name of the run.
    """

    run: str
    inputs: Sequence[Path] = ()
    layers: Layers
    pool: Wanted = "auto"
    checkpoint: str | None = None
    split: str | None = None
    settings: PredictionSection | None = None
    device: str = "auto"
    uri: str | None = None
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class LayerData:
    """Cases that a network looks at; an image is one, too.

    Attributes:
        name: Name of the cohort or of the list of images.
        pool: How voxels become one number per channel; None: they are kept.
        cohort: The cohort, with these cases alone.
        names: Name of each case, in their order.
        subjects: Subject of each case: what a readout must not learn from and be scored on.
        labels: What each case is, by its name; ``None`` where nobody said it.
        targets: Numbers that cases have, by column.
        outputs: Runs the cases through the network and gives [N, channels, …] by layer.
    """

    name: str
    pool: Pooling | None
    cohort: Cohort
    names: tuple[str, ...]
    subjects: tuple[str, ...]
    labels: tuple[str | None, ...]
    targets: Mapping[str, tuple[float | None, ...]]
    outputs: Callable[[Layers], Outputs]


def layer_data(trained: TrainedNetwork, request: LayerRequest, device: torch.device, session: Session) -> LayerData:
    """Return the cases that a request names, checked.

    Raises:
        DmxError: They cannot be used.
    """
    if not isinstance(trained, Trained):
        return _whole(trained, request, device, session)
    cohort = with_rois(_cohort(trained, request, session), trained.contract, session)
    check_scans(cohort, trained.contract, session, with_labels=False)
    section = request.settings or trained.experiment.prediction
    predictor = case_predictor(trained, section, device, session=session).predictor

    pool = _pool(request.pool, otherwise="mean")

    def outputs(layers: Layers) -> Outputs:
        for case in cohort.cases:
            yield _of_case(case, trained, predictor, layers, pool)

    return _of_cohort(cohort, pool, outputs)


def _whole(trained: TrainedNetwork, request: LayerRequest, device: torch.device, session: Session) -> LayerData:
    """Return images or volumes that are read whole."""
    if request.settings is not None:
        raise ConfigError("--set prediction.… belongs to segmentation; whole images and volumes need none.")
    network = trained.network.to(device)
    if request.inputs or request.split is None:
        inputs = request.inputs or [_own_list(trained)]
        found = chosen_inputs(trained, inputs, split=request.split, device=device, session=session)
        if not request.inputs:
            require_own(trained.run, trained.seen(), found.cohort)
    else:
        found = known_inputs(trained, None, split=request.split, device=device, session=session)
    pool = _pool(request.pool, otherwise=None if isinstance(trained.contract, ImageContract) else "mean")

    def outputs(layers: Layers) -> Outputs:
        return layer_outputs(network, (batch.inputs for batch in found.batches), layers, pool=pool)

    return _of_cohort(found.cohort, pool, outputs)


def _own_list(trained: TrainedNetwork) -> Path:
    """Return the list of images or the manifest that a network was trained on."""
    return own_source(trained.run, trained.experiment)


def _of_cohort(cohort: Cohort, pool: Pooling | None, outputs: Callable[[Layers], Outputs]) -> LayerData:
    """Return cases with what is known of them."""
    return LayerData(
        name=cohort.name,
        pool=pool,
        cohort=cohort,
        names=tuple(case.name for case in cohort.cases),
        subjects=tuple(case.subject for case in cohort.cases),
        labels=tuple(_label(case, cohort) for case in cohort.cases),
        targets={
            name: tuple(_number(case, name) for case in cohort.cases)
            for name in dict.fromkeys(name for case in cohort.cases for name in case.targets)
        },
        outputs=outputs,
    )


def _number(case: Case, name: str) -> float | None:
    value = case.targets.get(name)
    return None if value is None or math.isnan(value) else value


def _pool(wanted: Wanted, *, otherwise: Pooling | None) -> Pooling | None:
    if wanted == "auto":
        return otherwise
    return None if wanted == "none" else wanted


def _cohort(trained: Trained, request: LayerRequest, session: Session) -> Cohort:
    if request.inputs:
        return chosen_cases(request.inputs, trained, split=request.split, session=session)
    own = cohort_of_run(None, trained)
    return chosen_cases([own.manifest], trained, split=request.split, session=session) if own.manifest else own


def _label(case: Case, cohort: Cohort) -> str | None:
    if case.label is None:
        return None
    return cohort.label_classes[case.label] if cohort.label_classes else str(case.label)


def _of_case(
    case: Case, trained: Trained, predictor: Predictor, layers: Layers, pool: Pooling | None
) -> dict[str, Tensor]:
    prepared = preprocess_case(case.unmapped(), trained.contract)
    roi = None if prepared.roi is None else torch.from_numpy(prepared.roi)
    return volume_layers(predictor, torch.from_numpy(prepared.channels), layers, roi=roi, pool=pool)
