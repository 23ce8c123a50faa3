"""Predict cases with a trained network, on the grid of their scans."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dmx.cohort.case import Case, Cohort
from dmx.cohort.check import check_cohort
from dmx.cohort.grid import NiftiGrid
from dmx.config.sections import PredictionSection
from dmx.errors import CohortError, ModelError, suggest
from dmx.evaluation.features import FeatureMaps
from dmx.evaluation.tiling import Predictor, Progress
from dmx.geometry import triple
from dmx.preprocess.contract import Contract
from dmx.preprocess.native import Geometry, restore_labels, restore_maps, restore_most_probable, restore_one
from dmx.preprocess.pipeline import PreparedCase, preprocess_case
from dmx.workflows.checked import AnyContract
from dmx.workflows.data import require_no_errors
from dmx.workflows.session import Session
from dmx.workflows.trained import Trained


@dataclass(frozen=True, kw_only=True)
class NativePrediction:
    """What a network says of a case, on the grid of its scan.

    Attributes:
        prepared: The case as the network saw it.
        grid: Grid of the scan.
        labels: Class indices [I, J, K].
        probabilities: A map float32 [I, J, K] per class or region, each made when it is asked for; None unless they
            were wanted.
        features: Layer name → float32 [channels, I, J, K].
    """

    prepared: PreparedCase
    grid: NiftiGrid
    labels: NDArray[Any]
    probabilities: "NativeMaps | None"
    features: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class NativeMaps:
    """Probability maps on the grid of a scan; going through them holds one at a time.

    Attributes:
        prepared_CIJK: The maps on the grid of the network.
        geometry: The way back.
        background_first: Whether the first is that of the background, which is outside of the crop; else nothing is.
    """

    prepared_CIJK: NDArray[Any]
    geometry: Geometry
    background_first: bool = True

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for index, one in enumerate(self.prepared_CIJK):
            yield restore_one(one, self.geometry, outside=float(self.background_first and index == 0))


@dataclass(frozen=True, kw_only=True)
class CasePredictor:
    """Predicts one case after the other.

    Attributes:
        trained: The network.
        predictor: Tiles, overlap, mirroring.
        with_probabilities: Keep probability maps.
        layers: Layers whose feature maps are wanted, with first and last channel.
    """

    trained: Trained
    predictor: Predictor
    with_probabilities: bool = False
    layers: Mapping[str, tuple[int, int]]

    def __call__(self, case: Case, progress: Progress | None = None) -> NativePrediction:
        """Predict a case.

        Raises:
            CohortError: The case cannot be read.
            ModelError: The network or the memory cannot take it.
        """
        # Truth is read elsewhere: its values may be those of another study.
        prepared = preprocess_case(case.unmapped(), self.trained.contract)
        channels = torch.from_numpy(prepared.channels)
        roi = None if prepared.roi is None else torch.from_numpy(prepared.roi)
        resampled = prepared.geometry.resampled
        dtype = np.uint8 if len(self.trained.contract.classes) <= 256 else np.int16
        if not (self.with_probabilities or self.layers or resampled):
            found = self.predictor.labels(channels, roi=roi, progress=progress)
            labels, grid = restore_labels(found.cpu().numpy(), prepared.geometry)
            return NativePrediction(prepared=prepared, grid=grid, labels=labels, probabilities=None, features={})
        maps = FeatureMaps(self.layers) if self.layers else None
        found = self.predictor.probabilities(channels, roi=roi, progress=progress, features=maps)
        regions = self.predictor.regions
        probabilities = (found if regions else _background_outside(found)).cpu().numpy()
        native = NativeMaps(probabilities, prepared.geometry, background_first=not regions)
        if regions:
            grid = prepared.geometry.grid
            labels = regions.paint((one > 0.5 for one in native), np.zeros(grid.shape, dtype=dtype))
        else:
            labels, grid = restore_most_probable(probabilities, prepared.geometry)
        volumes = {} if maps is None else maps.volumes
        return NativePrediction(
            prepared=prepared,
            grid=grid,
            labels=labels,
            probabilities=native if self.with_probabilities else None,
            features={name: restore_maps(v.numpy(), prepared.geometry)[0] for name, v in volumes.items()},
        )


def _background_outside(probabilities_CIJK: torch.Tensor) -> torch.Tensor:
    """Make background of voxels that were not predicted because they lie outside of the roi."""
    untouched = probabilities_CIJK.sum(dim=0) == 0
    probabilities_CIJK[0][untouched] = 1.0
    return probabilities_CIJK


def case_predictor(
    trained: Trained,
    section: PredictionSection,
    device: torch.device,
    *,
    with_probabilities: bool = False,
    layers: Mapping[str, tuple[int, int]] | None = None,
    session: Session,
) -> CasePredictor:
    """Put a trained network on a device, ready to predict; the session gets the warnings."""
    if section.tile != "auto":
        try:
            trained.network.segment_plan(triple(section.tile))
        except ModelError as error:
            raise ModelError(f"prediction.tile cannot be {section.tile}: {error}") from None
    precision = section.precision or trained.experiment.training.precision
    predictor = Predictor(
        network=trained.network.to(device),
        section=replace(section, precision=precision),
        device=device,
        warn=session.warn,
        regions=trained.contract.regions,
    )
    return CasePredictor(
        trained=trained, predictor=predictor, with_probabilities=with_probabilities, layers=dict(layers or {})
    )


def require_channels(cohort: Cohort, contract: AnyContract, *, owner: str) -> None:
    """Require that a cohort has the channels that a checkpoint was trained with.

    Raises:
        CohortError: It lacks one that the contract does not fill.
    """
    filled = contract.fill if isinstance(contract, Contract) else {}
    for name in contract.channels:
        if name not in cohort.channels and name not in filled:
            raise CohortError(
                f"{owner} was trained with the channels {', '.join(contract.channels)}; cohort '{cohort.name}' has "
                f"{', '.join(cohort.channels)} and lacks '{name}'.{suggest(name, cohort.channels)}"
            )


def with_rois(cohort: Cohort, contract: Contract, session: Session, *, ignored: bool = False) -> Cohort:
    """Require the rois that a network has learned with.

    Normalization and the region that is predicted follow the roi, so that a network which has always had one errs
    without it.

    Args:
        cohort: The cases.
        contract: What the network demands of its input.
        session: Whom to tell.
        ignored: Go on without any roi, which is said.

    Raises:
        CohortError: A case lacks one.
    """
    if ignored:
        if contract.roi:
            session.warn("The network was trained on scans with a roi; without one, as --no-roi says, it errs more.")
        return replace(cohort, cases=tuple(replace(case, roi=None) for case in cohort.cases))
    if sentence := without_rois(cohort, contract):
        raise CohortError(
            f"{sentence} Name it in the column 'roi' of the manifest, or for single files with --roi FILE; --no-roi "
            "goes on without."
        )
    return cohort


def without_rois(cohort: Cohort, contract: Contract) -> str:
    """Say which cases lack the roi that a network has learned with; nothing where none does."""
    missing = [case.name for case in cohort.cases if case.roi is None]
    if not contract.roi or not missing:
        return ""
    return (
        f"{len(missing)} of {len(cohort.cases)} cases have no roi, first '{missing[0]}', but the network was trained "
        "on scans with one."
    )


def check_scans(cohort: Cohort, contract: Contract, session: Session, *, with_labels: bool) -> None:
    """Check the files that will be read.

    Raises:
        CohortError: The first findings.
    """
    cases = cohort.cases if with_labels else tuple(replace(case, label_map=None, split="") for case in cohort.cases)
    findings = check_cohort(
        replace(cohort, cases=tuple(replace(case, weight_maps={}) for case in cases)),
        num_classes=len(contract.classes),
        classes=contract.scored,
        fill=contract.fill,
        labels=contract.labels,
        complete=contract.labels_complete,
        channels=contract.channels,
        ignore=contract.ignore,
        progress=session.progress("checking files"),
    )
    require_no_errors(findings, session)
