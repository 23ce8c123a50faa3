"""A whole scan against DeepMedic's own segmentation of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dmx.config.model import FCSection, ModelSection, NormalizationSection, PathwaySection
from dmx.config.sections import PredictionSection
from dmx.evaluation.metrics import score_case
from dmx.evaluation.tiling import Predictor
from dmx.model.build import build_network

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
GOLDEN = SHARED / "golden" / "e2e_tiny_pat0003.npz"
CASE = SHARED / "data" / "brats2015" / "validation" / "brats_2013_pat0003_1"
MARGIN = 3

pytestmark = pytest.mark.skipif(not GOLDEN.exists(), reason="the reference arrays are not beside the repository")

LAYERS = {
    "BiasLayer.b": "norm.bias",
    "BatchNormLayer.g": "norm.weight",
    "BatchNormLayer.b": "norm.bias",
    "BatchNormLayer.array_mus_for_moving_avg": "norm.means",
    "BatchNormLayer.array_vars_for_moving_avg": "norm.variances",
    "PreluLayer.a": "activation.weight",
    "ConvolutionalLayer.w": "conv.weight",
}


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def own_name(name):
    """Name in the state dict for DeepMedic's ``norm.block1.ConvolutionalLayer.w``."""
    if name == "softmax.b":
        return "head.conv.bias"
    pathway, block, layer = name.split(".", 2)
    number = int(block.removeprefix("block")) + 1
    prefix = {"norm": f"normal.block_{number}", "sub0": f"subsampled_1.block_{number}", "fc": "head"}[pathway]
    return f"{prefix}.{LAYERS[layer]}"


@pytest.fixture(scope="module")
def network(golden):
    section = ModelSection(
        normal=PathwaySection(widths=(4, 5, 6)),
        fc=FCSection(widths=()),
        normalization=NormalizationSection(name="batch_rolling"),
    )
    network = build_network(section, num_channels=2, num_classes=5, compatibility="deepmedic")
    state = {own_name(semantic): torch.from_numpy(golden[f"var/{name}"]) for semantic, name in golden["varmap"]}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("norm.count") for name in missing)
    return network


@pytest.fixture(scope="module")
def scan():
    """Channels and roi, padded by reflection as DeepMedic pads; the truth without padding; spacing."""
    from dmx.cohort.volume import read_volume

    files = ("Flair_subtrMeanDivStd", "T1c_subtrMeanDivStd", "brainmask", "OTMultiClass")
    volumes = [read_volume(CASE / f"{name}.nii.gz") for name in files]
    flair, t1c, roi = (np.pad(volume.array, MARGIN, mode="reflect") for volume in volumes[:3])
    channels = torch.from_numpy(np.stack([flair, t1c]).astype(np.float32))
    return channels, torch.from_numpy(roi.astype(np.uint8)), volumes[3]


def predictor(network, **options):
    section = PredictionSection(tile=45)
    return Predictor(network=network, section=section, device=torch.device("cpu"), **options)


def test_the_probabilities_of_one_tile_are_those_of_deepmedic(golden, network, scan):
    channels, roi, _ = scan
    # DeepMedic's tiles give 39 voxels per axis; this box lies within one of them, and in the block that is known.
    box = np.s_[80:117, 80:117, 40:78]
    within = np.s_[:, :37, :37, :38]
    only = torch.zeros_like(roi)
    padded = tuple(slice(part.start + MARGIN, part.stop + MARGIN) for part in box)
    only[padded] = roi[padded]
    tiles = []

    found = predictor(network).probabilities(channels, roi=only, progress=lambda done, total: tiles.append(total))

    assert tiles == [1]
    assert golden["prob_crop_slices"].tolist() == [[80, 160], [80, 160], [40, 100]]
    np.testing.assert_allclose(found[(slice(None), *padded)].numpy(), golden["prob_crop"][within], atol=1e-5)
    assert only[padded].float().mean() > 0.5


@pytest.mark.slow
def test_the_whole_segmentation_is_that_of_deepmedic(golden, network, scan):
    channels, roi, _ = scan
    probabilities = predictor(network).probabilities(channels, roi=roi)
    inner = probabilities[:, MARGIN:-MARGIN, MARGIN:-MARGIN, MARGIN:-MARGIN]

    segmentation = inner.argmax(dim=0).numpy()
    box = tuple(slice(low, high) for low, high in golden["prob_crop_slices"])
    assert np.mean(segmentation == golden["segm"]) >= 0.9999
    np.testing.assert_allclose(inner[(slice(None), *box)].numpy(), golden["prob_crop"], atol=1e-5)
    labels = predictor(network).labels(channels, roi=roi)[MARGIN:-MARGIN, MARGIN:-MARGIN, MARGIN:-MARGIN]
    assert np.array_equal(labels.numpy(), segmentation)


@pytest.mark.slow
def test_the_dice_scores_are_those_that_deepmedic_reports(golden, network, scan):
    channels, roi, truth = scan
    inner = np.s_[MARGIN:-MARGIN, MARGIN:-MARGIN, MARGIN:-MARGIN]
    whole = predictor(network, keep_outside=True).labels(channels, roi=roi).numpy()[inner]

    row = score_case(
        truth.array.astype(np.int16),
        whole,
        spacing=truth.spacing,
        classes=("background", "one", "two", "three", "four"),
        roi=roi.numpy()[inner],
    )

    found = [row[f"deepmedic_dice1/{name}"] for name in ("foreground", "one", "two", "three", "four")]
    assert found == pytest.approx([0.8607, 0.0, 0.8573, 0.0, 0.6707], abs=2e-4)
