"""Predict whole volumes by tiles: only where the roi is, as large as memory allows, of any size."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from dmx.cohort.regions import Regions
from dmx.config.sections import PredictionSection
from dmx.errors import ModelError
from dmx.evaluation.features import Collector
from dmx.evaluation.layout import Plans, Tile, fitted_tiles, grid_tiles, occupied, split_evenly
from dmx.evaluation.memory import KEEP_ON_DEVICE, forward_bytes, free_bytes
from dmx.evaluation.sinks import LabelSink, ProbabilitySink, Sink, to_labels
from dmx.geometry import SegmentPlan, Triple, triple
from dmx.model.meta import mode
from dmx.model.network import Network
from dmx.model.spec import size_text
from dmx.sampling.patches import cut_patches

Progress = Callable[[int, int], None]

_LOG = logging.getLogger(__name__)
_LARGEST_ON_CPU = 64**3
"""Output voxels of a tile on a CPU: beyond it the margin saves little and the caches are left."""
_SHARE = {"cpu": 0.5, "cuda": 0.7}
"""Share of the free memory that a forward pass may take."""


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A network with what it takes to predict volumes.

    Attributes:
        network: Network with ``segment_plan``; it is put into evaluation mode while it predicts.
        section: Tile, overlap, mirroring, batch size, precision.
        device: Device of the network.
        keep_outside: Leave what tiles gave outside of the roi instead of zeros (DeepMedic's DICE1 counts it).
        dtype: Type of probability maps; float16 halves their memory.
        regions: Regions that may overlap, each with a sigmoid output; without any, a softmax over the classes.
        warn: Gets a sentence where smaller tiles had to do.
    """

    network: Network
    section: PredictionSection
    device: torch.device
    keep_outside: bool = False
    dtype: torch.dtype = torch.float32
    regions: Regions = field(default_factory=Regions)
    warn: Callable[[str], object] = _LOG.warning

    def probabilities(
        self,
        channels_CIJK: Tensor,
        *,
        roi: Tensor | None = None,
        progress: Progress | None = None,
        features: Collector | None = None,
    ) -> Tensor:
        """Return the probabilities [classes, I, J, K] of a volume, of regions [regions, I, J, K].

        In compatibility mode the volume comes padded by the network's margins, and the padding stays zero.

        Args:
            channels_CIJK: Channels of the volume, on any device; a memory map is read tile by tile.
            roi: Region [I, J, K]; where it is 0 nothing is predicted and all probabilities are 0.
            progress: Called with tiles done and tiles in all.
            features: Feature maps to collect on the way.

        Raises:
            ModelError: The tile does not fit the network, or the smallest tile does not fit the memory.
        """

        def sink(device: torch.device) -> Sink:
            weighted = self.section.overlap > 0
            return ProbabilitySink(shape, weighted=weighted, dtype=self.dtype, device=device)

        shape = triple(channels_CIJK.shape[1:])
        return _Job(self, channels_CIJK, roi, sink, features).run(progress)

    def labels(self, channels_CIJK: Tensor, *, roi: Tensor | None = None, progress: Progress | None = None) -> Tensor:
        """Return the label of each voxel [I, J, K]; background outside of the roi.

        It is the most probable class; with regions, what :meth:`~dmx.cohort.regions.Regions.paint` makes of those above
        a half.

        The type is uint8, int16 beyond 256 classes. Without overlap no probability map of the volume is ever held: one
        or two bytes per voxel are all it takes.
        """
        if self.section.overlap > 0:
            found = self.probabilities(channels_CIJK, roi=roi, progress=progress)
            return to_labels(found, self.regions)
        shape = triple(channels_CIJK.shape[1:])
        return _Job(self, channels_CIJK, roi, lambda device: LabelSink(shape, device, self.regions), None).run(progress)


def predict_volume(
    network: Network,
    channels_CIJK: Tensor,
    *,
    roi: Tensor | None = None,
    section: PredictionSection,
    device: torch.device,
    progress: Progress | None = None,
) -> Tensor:
    """Return the probabilities [classes, I, J, K] of a volume; see :meth:`Predictor.probabilities`."""
    predictor = Predictor(network=network, section=section, device=device)
    return predictor.probabilities(channels_CIJK, roi=roi, progress=progress)


class _Job:
    """One volume's way through the network."""

    def __init__(
        self,
        predictor: Predictor,
        channels_CIJK: Tensor,
        roi: Tensor | None,
        sink: Callable[[torch.device], Sink],
        features: Collector | None,
    ) -> None:
        self._predictor = predictor
        self._shape = triple(channels_CIJK.shape[1:])
        _check_roi(roi, self._shape)
        self._roi = roi
        self._region = None if roi is None else (roi != 0).cpu().numpy()
        self._channels = self._held_near(channels_CIJK)
        self._sink = sink
        self._features = features
        tile = predictor.section.tile
        self._plans = Plans(predictor.network, None if tile == "auto" else triple(tile))

    def run(self, progress: Progress | None) -> Tensor:
        """Predict, with smaller tiles as often as memory runs out."""
        predictor = self._predictor
        first = plan = self._first_plan()
        while True:
            try:
                with mode(predictor.network, training=False), torch.no_grad(), self._hooks():
                    result = self._predict(plan, progress)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                plan = self._halved(plan, error)
            else:
                break
            if predictor.device.type == "cuda":
                torch.cuda.empty_cache()
        if plan is not first:
            wanted, used = size_text(first.shape), size_text(plan.shape)
            predictor.warn(f"Tiles of {wanted} voxels did not fit into the memory of {predictor.device}; {used} did.")
        return result

    def _predict(self, plan: SegmentPlan, progress: Progress | None) -> Tensor:
        predictor, section = self._predictor, self._predictor.section
        sink = self._sink(predictor.device)
        tiles = self._layout(plan)
        done = 0
        for batch in _batches(tiles, section.batch_size):
            for tile, block in zip(batch, self._forward(batch), strict=True):
                sink.add(tile, block)
            done += len(batch)
            if progress is not None:
                progress(done, len(tiles))
        return sink.finish(None if predictor.keep_outside else self._roi)

    def _forward(self, batch: Sequence[Tile]) -> Tensor:
        """Return probabilities [N, classes, I, J, K] of tiles of one size, averaged over mirrored passes."""
        cuts = [cut_patches(self._channels, tile.segment_start, tile.plan) for tile in batch]
        patches = [torch.stack(together).to(self._predictor.device) for together in zip(*cuts, strict=True)]
        total = self._class_probabilities(patches)
        if self._features is not None:
            self._features.collect(batch, self._shape)
        mirrors = _mirrors(self._predictor.section.mirror)
        for axes in mirrors:
            flipped = self._class_probabilities([patch.flip(axes) for patch in patches])
            total += flipped.flip(axes)
        return total / (1 + len(mirrors)) if mirrors else total

    def _class_probabilities(self, patches: Sequence[Tensor]) -> Tensor:
        with _autocast(self._predictor.device, self._predictor.section.precision):
            logits: Tensor = self._predictor.network(patches)
        found = logits.float().sigmoid() if self._predictor.regions else logits.float().softmax(dim=1)
        # The largest of scores that are no numbers would be the first class, the background.
        if bool(found.isnan().any()):
            raise ModelError(
                "The network gives scores that are no numbers (NaN) for this scan, so nothing can be predicted. Look "
                "at the scan for extreme values, and use precision fp32 or another checkpoint."
            )
        return found

    def _layout(self, plan: SegmentPlan) -> list[Tile]:
        """Return the tiles; one at least, which tells the number of classes when the roi is empty."""
        overlap = self._predictor.section.overlap
        if self._plans.has_margin and not self._plans.inside:
            tiles = fitted_tiles(self._shape, self._plans, plan.output_shape, roi=self._region, overlap=overlap)
        else:
            tiles = grid_tiles(self._shape, self._plans, plan, roi=self._region, overlap=overlap)
        return list(tiles) or [Tile((0, 0, 0), plan)]

    def _first_plan(self) -> SegmentPlan:
        tile = self._predictor.section.tile
        if tile == "auto":
            return self._automatic()
        size = triple(tile)
        if self._plans.inside:
            size = triple([min(n, length) for n, length in zip(size, self._shape, strict=True)])
        return self._plans.of_segment(size)

    def _automatic(self) -> SegmentPlan:
        """Cut what the roi covers into as few equal blocks as memory (and speed on a CPU) allow."""
        plans = self._plans
        ranges = occupied(self._region, (0, 0, 0), self._shape) or [(0, 1)] * 3
        extent = triple([high - low for low, high in ranges])
        if plans.inside:
            margins = zip(self._shape, plans.margin_before, plans.margin_after, strict=True)
            extent = triple([max(1, n - before - after) for n, before, after in margins])
        parts = [1, 1, 1]
        while True:
            block = split_evenly(extent, triple(parts), plans.alignment)
            if plans.inside:
                block = triple([min(size, whole) for size, whole in zip(block, extent, strict=True)])
            plan = plans.covering(block)
            splittable = [axis for axis in range(3) if block[axis] > plans.alignment[axis]]
            if self._affordable(plan) or not splittable:
                return plan
            parts[max(splittable, key=lambda axis: block[axis])] += 1

    def _affordable(self, plan: SegmentPlan) -> bool:
        device, batch = self._predictor.device, self._predictor.section.batch_size
        if device.type == "cpu" and self._plans.has_margin and math.prod(plan.output_shape) * batch > _LARGEST_ON_CPU:
            return False
        need = forward_bytes(self._predictor.network, plan, channels=len(self._channels), batch=batch)
        return need <= _SHARE.get(device.type, 0.5) * free_bytes(device)

    def _halved(self, plan: SegmentPlan, error: RuntimeError) -> SegmentPlan:
        """Return a plan with half of the longest axis, or raise where the network takes nothing smaller."""
        block = list(plan.output_shape)
        axis = block.index(max(block))
        block[axis] = -(-block[axis] // 2)
        smaller = self._plans.covering(triple(block))
        if math.prod(smaller.shape) >= math.prod(plan.shape):
            raise ModelError(
                f"A tile of {size_text(plan.shape)} voxels is the smallest that this network takes, and it does not "
                f"fit into the memory of {self._predictor.device}. Use another device or prediction.precision bf16."
            ) from error
        return smaller

    def _held_near(self, channels_CIJK: Tensor) -> Tensor:
        """Move the volume to an accelerator with room for it, so that patches are cut there."""
        device = self._predictor.device
        if device.type == "cpu" or channels_CIJK.nbytes > KEEP_ON_DEVICE * free_bytes(device):
            return channels_CIJK
        return channels_CIJK.to(device)

    def _hooks(self) -> AbstractContextManager[None]:
        if self._features is None:
            return nullcontext()
        return self._features.watching(self._predictor.network)


def _check_roi(roi: Tensor | None, shape: Triple) -> None:
    if roi is not None and tuple(roi.shape) != shape:
        raise ModelError(f"The roi has {tuple(roi.shape)} voxels and the channels have {shape}. Give both on one grid.")


def _batches(tiles: Sequence[Tile], size: int) -> Iterator[list[Tile]]:
    """Yield up to ``size`` neighboring tiles of one segment size."""
    batch: list[Tile] = []
    for tile in tiles:
        if batch and (len(batch) == size or batch[0].plan != tile.plan):
            yield batch
            batch = []
        batch.append(tile)
    yield batch


def _mirrors(axes: Sequence[int]) -> list[list[int]]:
    """Return the dimensions of [N, C, I, J, K] to flip, one list per mirrored pass.

    >>> _mirrors((0, 2))
    [[2], [4], [2, 4]]
    """
    chosen = sorted(set(axes))
    return [[axis + 2 for axis in some] for n in range(1, len(chosen) + 1) for some in combinations(chosen, n)]


def _autocast(device: torch.device, precision: str | None) -> AbstractContextManager[object]:
    if precision in (None, "fp32"):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether memory ran out; the CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
