import logging
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmx.config.model import FCSection, ModelSection, PathwaySection, SubsampledSection
from dmx.config.sections import PredictionSection
from dmx.errors import ModelError
from dmx.evaluation import tiling
from dmx.evaluation.tiling import Predictor, predict_volume
from dmx.model.build import build_network

CPU = torch.device("cpu")


def predict(network, channels, *, roi=None, **section):
    return predict_volume(network, channels, roi=roi, section=PredictionSection(**section), device=CPU)


@pytest.mark.parametrize("tile", [11, (30, 8, 11), "auto"])
@pytest.mark.parametrize("overlap", [0.0, 0.4])
def test_tiles_reassemble_the_volume(two_scales, volume, in_one_pass, tile, overlap):
    found = predict(two_scales, volume, tile=tile, overlap=overlap)
    torch.testing.assert_close(found, in_one_pass(two_scales, volume), rtol=0, atol=5e-6)


@settings(max_examples=10, deadline=None)
@given(
    tile=st.tuples(*[st.integers(9, 20)] * 3),
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    factors=st.sampled_from([(3, 3, 3), (2, 2, 2), (1, 2, 3)]),
    kernel=st.sampled_from([(3, 3, 3), (3, 3, 1), (2, 3, 4)]),
    upsampling=st.sampled_from(["nearest", "linear"]),
)
def test_tiles_of_any_size_reassemble_volumes_of_any_size(in_one_pass, tile, shape, **options):
    section = ModelSection(
        normal=PathwaySection(widths=(3, 3), kernels=(options["kernel"], (1, 1, 1))),
        subsampled=(SubsampledSection(factor=options["factors"]), SubsampledSection(factor=2)),
        fc=FCSection(widths=(4,), kernels=((1, 1, 1), options["kernel"])),
        upsampling=options["upsampling"],
    )
    network = build_network(section, num_channels=2, num_classes=3).eval()
    channels = torch.randn((2, *shape), generator=torch.Generator().manual_seed(sum(shape)))
    found = predict(network, channels, tile=tile)
    torch.testing.assert_close(found, in_one_pass(network, channels), rtol=0, atol=1e-5)


def test_tiles_off_the_subsampled_grid_would_not_reassemble(two_scales, volume, in_one_pass):
    # Why starts are multiples of the factors: the same block, anchored one voxel further, gives something else.
    moved = predict(two_scales, volume[:, 1:], tile=13)
    expected = in_one_pass(two_scales, volume)[:, 1:]
    assert not torch.allclose(moved[:, 4:-4], expected[:, 4:-4], atol=1e-3)


def test_only_the_roi_is_predicted_and_there_nothing_changes(two_scales, volume, in_one_pass):
    roi = torch.zeros(volume.shape[1:], dtype=torch.uint8)
    roi[5:9, 3:8, 2:10] = 1
    roi[18, 12, 0] = 255
    tiles = []
    predictor = Predictor(network=two_scales, section=PredictionSection(tile=10), device=CPU)

    found = predictor.probabilities(volume, roi=roi, progress=lambda done, total: tiles.append((done, total)))

    expected = in_one_pass(two_scales, volume)
    torch.testing.assert_close(found[:, roi > 0], expected[:, roi > 0], rtol=0, atol=5e-6)
    assert found[:, roi == 0].abs().max() == 0
    whole = []
    predictor.probabilities(volume, progress=lambda done, total: whole.append((done, total)))
    assert tiles == [(n + 1, len(tiles)) for n in range(len(tiles))]
    assert len(tiles) < len(whole) / 2


def test_what_tiles_give_outside_of_the_roi_can_be_kept(two_scales, volume):
    roi = torch.zeros(volume.shape[1:], dtype=torch.uint8)
    roi[7, 7, 7] = roi[8, 9, 8] = 1
    section = PredictionSection(tile=13)
    kept = Predictor(network=two_scales, section=section, device=CPU, keep_outside=True).probabilities(volume, roi=roi)
    assert (kept[:, roi == 0].sum(dim=0) > 0.99).any()


def test_an_empty_roi_gives_zeros(two_scales, volume):
    roi = torch.zeros(volume.shape[1:], dtype=torch.uint8)
    assert predict(two_scales, volume, roi=roi).shape == (3, *volume.shape[1:])
    assert predict(two_scales, volume, roi=roi).abs().max() == 0


def test_labels_are_the_most_probable_classes(two_scales, volume):
    roi = torch.zeros(volume.shape[1:], dtype=torch.uint8)
    roi[3:17] = 1
    for overlap in (0.0, 0.5):
        section = PredictionSection(tile=12, overlap=overlap)
        predictor = Predictor(network=two_scales, section=section, device=CPU)
        expected = predictor.probabilities(volume, roi=roi).argmax(dim=0)
        labels = predictor.labels(volume, roi=roi)
        assert labels.dtype == torch.uint8
        assert torch.equal(labels.long(), expected)
    assert len(labels.unique()) > 1


def test_batches_of_tiles_give_the_same(two_scales, volume):
    single = predict(two_scales, volume, tile=10)
    batched = predict(two_scales, volume, tile=10, batch_size=3)
    torch.testing.assert_close(batched, single, rtol=0, atol=1e-5)


def test_probabilities_sum_to_one_and_can_be_half(two_scales, volume):
    section = PredictionSection(tile=12)
    half = Predictor(network=two_scales, section=section, device=CPU, dtype=torch.float16).probabilities(volume)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), predict(two_scales, volume, tile=12), rtol=0, atol=1e-3)
    torch.testing.assert_close(half.float().sum(dim=0), torch.ones(volume.shape[1:]), rtol=0, atol=3e-3)


@pytest.mark.parametrize("axes", [(0,), (1, 2)])
def test_a_mirrored_volume_gets_the_mirrored_prediction(two_scales, axes):
    # Multiples of the factor on every axis, so that both ways round lie on one grid.
    channels = torch.randn((2, 12, 9, 15), generator=torch.Generator().manual_seed(2))
    dims = [axis + 1 for axis in axes]
    plain, mirrored = (predict(two_scales, channels.flip(d), mirror=()) for d in ([], dims))
    assert not torch.allclose(plain.flip(dims), mirrored, atol=1e-2)

    averaged = predict(two_scales, channels, mirror=axes)
    again = predict(two_scales, channels.flip(dims), mirror=axes).flip(dims)

    torch.testing.assert_close(averaged, again, rtol=0, atol=1e-6)


def test_bf16_is_near_and_not_equal(two_scales, volume):
    exact, rough = predict(two_scales, volume), predict(two_scales, volume, precision="bf16")
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.1


@pytest.mark.parametrize("shape", [(3, 5, 2), (19, 13, 11)])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_networks_without_margin_get_sizes_that_they_take(same_size, shape, overlap):
    channels = torch.randn((2, *shape), generator=torch.Generator().manual_seed(2))
    found = predict(same_size, channels, tile=8, overlap=overlap)
    assert found.shape == (3, *shape)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(shape))
    torch.testing.assert_close(predict(same_size, channels).sum(dim=0), torch.ones(shape))


def test_overlap_weighs_the_middle_of_a_tile_most(same_size):
    channels = torch.randn((2, 12, 8, 8), generator=torch.Generator().manual_seed(2))
    left, right = (predict(same_size, part, tile=8) for part in (channels[:, :8], channels[:, 4:]))
    found = predict(same_size, channels, tile=8, overlap=0.5)
    # Voxel 4 lies in the middle of the left tile and at the border of the right one.
    near, far = (found[:, 4] - left[:, 4]).abs().mean(), (found[:, 4] - right[:, 0]).abs().mean()
    assert near < 0.02 * far
    torch.testing.assert_close(found[:, :4], left[:, :4])


def test_in_compatibility_mode_tiles_stay_inside_and_the_later_one_wins():
    section = ModelSection(
        normal=PathwaySection(widths=(3, 3)), subsampled=(SubsampledSection(factor=3),), fc=FCSection(widths=())
    )
    section = replace(section, normalization=replace(section.normalization, name="batch_rolling"))
    network = build_network(section, num_channels=1, num_classes=2, compatibility="deepmedic").eval()
    channels = torch.randn((1, 20, 11, 11), generator=torch.Generator().manual_seed(2))

    found = predict(network, channels, tile=11)

    automatic = predict(network, channels)
    assert torch.equal(automatic.sum(dim=0) > 0.5, found.sum(dim=0) > 0.5)
    covered = found.sum(dim=0) > 0.5
    assert covered[2:-2, 2:-2, 2:-2].all()
    assert covered.sum() == 16 * 7 * 7
    last = predict(network, channels, tile=11, roi=_only(channels, 17))
    assert torch.equal(found[:, 11:18], _whole_tile(network, channels, 9))
    assert torch.equal(last[:, 17], found[:, 17] * _only(channels, 17)[17])


def _only(channels, plane):
    roi = torch.zeros(channels.shape[1:])
    roi[plane, 2:-2, 2:-2] = 1
    return roi


def _whole_tile(network, channels, start):
    from dmx.sampling.patches import cut_patches

    plan = network.segment_plan((11, 11, 11))
    patches = [patch.unsqueeze(0) for patch in cut_patches(channels, (start, 0, 0), plan)]
    block = torch.zeros((2, 7, *channels.shape[2:]))
    with torch.no_grad():
        block[:, :, 2:-2, 2:-2] = network(patches).softmax(dim=1)[0]
    return block


def test_a_padded_volume_thinner_than_the_tile_gets_a_smaller_tile():
    network = build_network(ModelSection(), num_channels=1, num_classes=2).eval()
    thin = torch.randn((1, 2, 40, 3), generator=torch.Generator().manual_seed(2))
    assert predict(network, thin, tile=37).sum(dim=0).sub(1).abs().max() < 1e-5


class Exhausted(torch.nn.Module):
    """Stands for a device on which patches above a number of voxels do not fit."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit
        self.failures = 0

    def forward(self, _module, inputs):
        if inputs[0][0][0, 0].numel() > self.limit:
            self.failures += 1
            raise torch.OutOfMemoryError("out of memory")


def test_out_of_memory_halves_the_tile_and_goes_on(two_scales, volume, in_one_pass, caplog):
    expected = in_one_pass(two_scales, volume)
    device = Exhausted(limit=12**3)
    two_scales.register_forward_pre_hook(device.forward)

    with caplog.at_level(logging.WARNING):
        found = predict(two_scales, volume, tile=(27, 21, 18))

    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)
    assert device.failures > 1
    assert len(caplog.records) == 1
    assert "Tiles of 27x21x18 voxels did not fit into the memory of cpu" in caplog.records[0].message


def test_no_tile_fits_into_memory(two_scales, volume):
    two_scales.register_forward_pre_hook(Exhausted(limit=0).forward)
    with pytest.raises(ModelError, match="smallest that this network takes"):
        predict(two_scales, volume, tile=10)


def test_other_failures_are_not_taken_for_a_lack_of_memory(two_scales, volume):
    with pytest.raises(RuntimeError, match="expected input"):
        predict(two_scales, volume[:1], tile=10)


def test_auto_cuts_smaller_where_memory_is_short(two_scales, volume, monkeypatch):
    sizes = []

    def note(_module, inputs):
        sizes.append(math.prod(inputs[0][0].shape[2:]))

    two_scales.register_forward_pre_hook(note)
    found = []
    for free in (10**9, 3 * 10**5):
        sizes.clear()
        monkeypatch.setattr(tiling, "free_bytes", lambda _, free=free: free)
        predict(two_scales, volume)
        found.append(max(sizes[-2:]))
    assert found[1] < found[0] / 2


def test_a_crowded_accelerator_hands_the_result_over(monkeypatch):
    from dmx.evaluation import sinks

    monkeypatch.setattr(sinks, "free_bytes", lambda _: 100)
    sink = sinks.ProbabilitySink((4, 4, 4), weighted=True, dtype=torch.float32, device=torch.device("cuda"))
    assert sink._allocate(3).device.type == "cpu"
    with pytest.raises(ValueError, match="No tile"):
        sink.finish(None)


def test_the_network_returns_to_its_mode(two_scales, volume):
    two_scales.train()
    two_scales.coarse.eval()
    predict(two_scales, volume)
    assert two_scales.training
    assert not two_scales.coarse.training


def test_a_tile_that_the_network_cannot_take_is_refused(two_scales, same_size, volume):
    with pytest.raises(ModelError, match="smallest segment is 5"):
        predict(two_scales, volume, tile=4)
    with pytest.raises(ModelError, match="multiples of 4"):
        predict(same_size, volume, tile=10)


def test_the_roi_must_lie_on_the_grid(two_scales, volume):
    with pytest.raises(ModelError, match="one grid"):
        predict(two_scales, volume, roi=torch.ones(3, 3, 3))


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_a_network_of_monai_predicts_volumes_of_any_size(overlap):
    arguments = {"channels": (4, 8), "strides": (2,)}
    network = build_network(ModelSection(name="UNet", arguments=arguments), num_channels=1, num_classes=2).eval()
    for shape in ((3, 21, 40), (17, 9, 16)):
        channels = torch.randn((1, *shape), generator=torch.Generator().manual_seed(2))
        for tile in ("auto", 16):
            found = predict(network, channels, tile=tile, overlap=overlap)
            torch.testing.assert_close(found.sum(dim=0), torch.ones(shape))


@pytest.mark.parametrize("overlap", [0.0, 0.4])
def test_class_300_is_class_300(two_scales, volume, overlap):
    two_scales.head = torch.nn.Conv3d(8, 320, 1)
    with torch.no_grad():
        two_scales.head.bias[300] = 1e4
    predictor = Predictor(network=two_scales, section=PredictionSection(tile=11, overlap=overlap), device=CPU)
    assert 300 in predictor.labels(volume).unique().tolist()
