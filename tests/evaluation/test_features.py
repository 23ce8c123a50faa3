import pytest
import torch

from dmx.config.model import FCSection, ModelSection, PathwaySection, SubsampledSection
from dmx.config.sections import PredictionSection
from dmx.errors import ModelError
from dmx.evaluation.features import FeatureMaps
from dmx.evaluation.tiling import Predictor
from dmx.model.build import build_network

CPU = torch.device("cpu")


def collect(network, channels, layers, *, allocate=None, roi=None, **section):
    maps = FeatureMaps(layers, allocate)
    predictor = Predictor(network=network, section=PredictionSection(**section), device=CPU)
    predictor.probabilities(channels, roi=roi, features=maps)
    return maps.volumes


def test_maps_of_tiles_are_those_of_the_whole_volume(two_scales, volume):
    layers = {"normal.0": (1, 2), "normal.2": (0, 3), "coarse.0": (0, 0), "coarse.2": (2, 3), "head": (0, 2)}
    whole = collect(two_scales, volume, layers)
    tiled = collect(two_scales, volume, layers, tile=13)
    assert {name: len(maps) for name, maps in whole.items()} == {
        "normal.0": 2,
        "normal.2": 4,
        "coarse.0": 1,
        "coarse.2": 2,
        "head": 3,
    }
    for name, maps in whole.items():
        torch.testing.assert_close(tiled[name], maps, rtol=0, atol=1e-5)
        assert maps.shape[1:] == volume.shape[1:]


def test_maps_lie_on_the_grid_of_the_scan(two_scales):
    # A kernel that copies its middle voxel: each map is then the channel itself, at full or coarse resolution.
    channels = torch.randn((2, 18, 12, 15), generator=torch.Generator().manual_seed(3))
    for layer in (two_scales.normal[0], two_scales.coarse[0]):
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, 1, 1, 1, 1] = 1
    maps = collect(two_scales, channels, {"normal.0": (0, 0), "coarse.0": (0, 0)}, tile=13)
    torch.testing.assert_close(maps["normal.0"][0], channels[1])
    coarse = torch.nn.functional.avg_pool3d(channels[1:], 3)
    repeated = coarse.repeat_interleave(3, 1).repeat_interleave(3, 2).repeat_interleave(3, 3)
    torch.testing.assert_close(maps["coarse.0"], repeated, rtol=0, atol=1e-6)


def test_the_head_s_maps_are_the_logits(two_scales, volume):
    maps = collect(two_scales, volume, {"head": (0, 2)}, mirror=(0,))["head"]
    section = PredictionSection()
    expected = Predictor(network=two_scales, section=section, device=CPU).probabilities(volume)
    torch.testing.assert_close(maps.softmax(dim=0), expected)


def test_a_real_network_s_layers_are_found_by_name():
    section = ModelSection(
        normal=PathwaySection(widths=(3, 3)), subsampled=(SubsampledSection(factor=2),), fc=FCSection(widths=(4,))
    )
    network = build_network(section, num_channels=1, num_classes=2).eval()
    channels = torch.randn((1, 13, 9, 8), generator=torch.Generator().manual_seed(3))
    layers = {group.name: (0, 1) for group in network.layer_groups()}
    whole, tiled = collect(network, channels, layers), collect(network, channels, layers, tile=10)
    assert len(whole) == 6
    for name, maps in whole.items():
        torch.testing.assert_close(tiled[name], maps, rtol=0, atol=1e-5)


def test_coarse_maps_of_a_network_without_margin_are_resized(same_size):
    channels = torch.randn((2, 8, 8, 8), generator=torch.Generator().manual_seed(3))
    maps = collect(same_size, channels, {"down": (0, 3), "head": (0, 0)})
    low = same_size.down(channels[None])[0]
    for axis in (1, 2, 3):
        low = low.repeat_interleave(2, dim=axis)
    torch.testing.assert_close(maps["down"], low.detach())
    assert maps["head"].shape == (1, 8, 8, 8)


def test_maps_are_zero_where_no_tile_was_and_go_where_they_are_told(two_scales, volume):
    given = {}

    def allocate(name, shape):
        given[name] = torch.zeros(shape, dtype=torch.float16)
        return given[name]

    roi = torch.zeros(volume.shape[1:])
    roi[:3] = 1
    maps = collect(two_scales, volume, {"normal.2": (0, 1)}, tile=10, allocate=allocate, roi=roi)
    assert maps["normal.2"] is given["normal.2"]
    assert maps["normal.2"][:, :3].abs().min() > 0
    assert maps["normal.2"][:, 9:].abs().max() == 0


def test_a_layer_of_tokens_has_no_maps(same_size):
    same_size.down.register_forward_hook(lambda _module, _inputs, output: output.flatten(2))
    same_size.forward = lambda patches: (
        same_size.head(torch.cat([patches[0]] * 3, dim=1)) + same_size.down(patches[0]).mean()
    )
    with pytest.raises(ModelError, match="gives 3 dimensions"):
        collect(same_size, torch.zeros(2, 8, 8, 8), {"down": (0, 0)})


def test_hooks_do_not_stay(two_scales, volume):
    collect(two_scales, volume, {"head": (0, 0)})
    assert not two_scales.head._forward_hooks


def test_requests_that_cannot_be_met_are_refused(two_scales, volume):
    with pytest.raises(ModelError, match=r"no layer 'normal.1'.*Did you mean"):
        collect(two_scales, volume, {"normal.1": (0, 0)})
    with pytest.raises(ModelError, match="has 4 feature maps"):
        collect(two_scales, volume, {"normal.0": (0, 4)})
    with pytest.raises(ModelError, match="no range"):
        FeatureMaps({"head": (2, 1)})
