"""Layers of a segmentation network over whole volumes."""

from dataclasses import replace

import pytest
import torch

from dmx.config.load import section_from_dict
from dmx.config.sections import ModelSection, PredictionSection
from dmx.errors import ModelError
from dmx.evaluation.features import FeatureMaps
from dmx.evaluation.layer_masks import LayerMask
from dmx.evaluation.layer_outputs import Pooling
from dmx.evaluation.tiling import Predictor
from dmx.evaluation.volume_layers import volume_layers
from dmx.model.build import build_network

CPU = torch.device("cpu")
LAYERS = ("normal.block_2", "subsampled_1.block_1", "fc.block_1", "head")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    section = section_from_dict(
        ModelSection, {"normal": {"widths": [4, 4]}, "subsampled": [{"factor": 2}], "fc": {"widths": [6]}}
    )
    network = build_network(section, num_channels=1, num_classes=2).eval()
    # Neither overlap nor mirroring of the prediction may reach the layers.
    return Predictor(network=network, section=PredictionSection(overlap=0.5, mirror=(0,)), device=CPU)


@pytest.fixture(scope="module")
def scan() -> torch.Tensor:
    return torch.randn(1, 16, 18, 14, generator=torch.Generator().manual_seed(0))


def test_maps_are_those_that_a_prediction_collects(predictor: Predictor, scan: torch.Tensor) -> None:
    collected = FeatureMaps(dict.fromkeys(LAYERS, (0, 1)))
    predictor.probabilities(scan, features=collected)
    found = volume_layers(predictor, scan, LAYERS, pool=None)
    for layer, maps in collected.volumes.items():
        assert torch.equal(found[layer][0, :2], maps)


@pytest.mark.parametrize("pool", ["max", "mean", "median"])
def test_every_voxel_counts_once_whatever_the_tiles(predictor: Predictor, scan: torch.Tensor, pool: Pooling) -> None:
    whole = volume_layers(predictor, scan, LAYERS, pool=None)
    tiled = replace(predictor, section=PredictionSection(tile=13, batch_size=3))
    names = [*LAYERS, "normal.block_1.norm"]
    for found in (volume_layers(predictor, scan, names, pool=pool), volume_layers(tiled, scan, names, pool=pool)):
        assert list(found) == names
        for layer in LAYERS:
            maps = whole[layer][0].flatten(1)
            wanted = {"max": maps.amax(1), "mean": maps.mean(1), "median": maps.quantile(0.5, dim=1)}[pool]
            assert torch.allclose(found[layer].flatten(), wanted, atol=1e-5)


def test_only_voxels_of_the_roi_count(predictor: Predictor, scan: torch.Tensor) -> None:
    roi = torch.zeros(16, 18, 14, dtype=torch.uint8)
    roi[3:6, 5:9, 2:4] = 1
    maps = volume_layers(predictor, scan, ["fc.block_1"], pool=None)["fc.block_1"][0]
    found = volume_layers(predictor, scan, {"fc.block_1": LayerMask(channels=(2, 5))}, roi=roi, pool="mean")
    assert torch.allclose(found["fc.block_1"].flatten(), maps[[1, 4]][:, roi != 0].mean(1), atol=1e-5)
    kept = volume_layers(predictor, scan, ["fc.block_1"], roi=roi, pool=None)["fc.block_1"][0]
    assert not kept[:, roi == 0].any()
    assert torch.allclose(kept[:, roi != 0], maps[:, roi != 0], atol=1e-5)
    for pool in ("mean", None):
        with pytest.raises(ModelError, match="roi is empty"):
            volume_layers(predictor, scan, ["fc.block_1"], roi=torch.zeros_like(roi), pool=pool)  # type: ignore[arg-type]


def test_what_gives_no_volumes_is_said(predictor: Predictor, scan: torch.Tensor) -> None:
    with pytest.raises(ModelError, match="does not run when the network does"):
        volume_layers(predictor, scan, ["fc"])
    with pytest.raises(ModelError, match="have no rows and columns"):
        volume_layers(predictor, scan, {"head": LayerMask(rows=(1,))})
    with pytest.raises(ModelError, match="2 channels, counted from 1, got channel 3"):
        volume_layers(predictor, scan, {"head": LayerMask(channels=(3,))})


def test_layers_of_a_padded_network_with_pooling_are_read_too(scan: torch.Tensor) -> None:
    section = section_from_dict(
        ModelSection, {"name": "UNet", "arguments": {"channels": [4, 8], "strides": [2], "num_res_units": 0}}
    )
    network = build_network(section, num_channels=1, num_classes=2).eval()
    predictor = Predictor(network=network, section=PredictionSection(tile=(16, 18, 14)), device=CPU)
    names = [group.name.removeprefix("network.") for group in network.layer_groups()][:2]
    found = volume_layers(predictor, scan, names, pool="mean")
    assert {layer: tuple(values.shape)[2:] for layer, values in found.items()} == dict.fromkeys(names, (1, 1))
