"""Classifiers of volumes, and what they receive from a segmentation network."""

import pytest
import torch
from torch import Tensor, nn

from dmx.config.freeze import FreezeSection
from dmx.config.model import FCSection, ModelSection, NormalizationSection, PathwaySection, SubsampledSection
from dmx.errors import ModelError
from dmx.geometry import PatchPlan
from dmx.model.build import build_network
from dmx.model.classifier import build_classifier
from dmx.model.network import TrainableNetwork
from dmx.model.sketch import sketch_network, sketch_section
from dmx.model.volume_classifier import FeatureClassifier, PathwayClassifier
from dmx.sampling.patches import cut_patch
from dmx.transfer.apply import apply_plan
from dmx.transfer.freeze_parts import network_parts
from dmx.transfer.freeze_planning import plan_freeze
from dmx.transfer.options import TransferOptions
from dmx.transfer.planning import plan_transfer

PATHWAYS = {"normal": PathwaySection(widths=(3, 4)), "subsampled": (SubsampledSection(widths=(3, 2), factor=3),)}
SECTION = ModelSection(name="encoder_classifier", **PATHWAYS)
UNET = {"channels": [4, 8, 16], "strides": [2, 2], "norm": "batch"}
OF_UNET = ModelSection(name="encoder_classifier", arguments={"network": "UNet", **UNET})


def classifier(section: ModelSection = SECTION, *, outputs: int = 2, seed: int = 0) -> TrainableNetwork:
    return build_classifier(section, num_channels=2, num_outputs=outputs, seed=seed)


def segmentation(section: ModelSection) -> TrainableNetwork:
    return build_network(section, num_channels=2, num_classes=3, seed=7)


def volumes(*shape: int) -> list[Tensor]:
    return [torch.rand(2, 2, *shape, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("shape", [(9, 7, 8), (1, 2, 3), (20, 5, 11)])
@pytest.mark.parametrize("outputs", [1, 4])
def test_volumes_of_any_size_get_one_row_of_scores(shape: tuple[int, ...], outputs: int) -> None:
    network = classifier(outputs=outputs)
    scores = network.train()(volumes(*shape))
    assert scores.shape == (2, outputs)
    scores.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert len(network.kernel_parameters()) == 5


def test_there_is_a_feature_for_every_voxel_and_the_mean_is_taken() -> None:
    network = classifier().eval()
    assert isinstance(network, PathwayClassifier)
    seen: dict[str, Tensor] = {}
    for name in ("normal", "subsampled_1"):
        network.get_submodule(name).register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
    with torch.no_grad():
        scores = network(volumes(9, 7, 8))
        pooled = torch.cat([maps.clamp(min=0).mean((2, 3, 4)) for maps in seen.values()], dim=1)
        assert torch.allclose(scores, network.head(pooled), atol=1e-6)
    assert [tuple(maps.shape[1:]) for maps in seen.values()] == [(4, 9, 7, 8), (2, 3, 3, 3)]


def test_pathways_read_the_whole_volume_as_the_patches_of_a_segmentation_network() -> None:
    network = classifier().eval()
    assert isinstance(network, PathwayClassifier)
    volume = volumes(5, 3, 7)[0]
    given: list[Tensor] = []
    for pathway in network.parallel:
        network.get_submodule(pathway.name).register_forward_pre_hook(lambda _m, inputs: given.append(inputs[0]))
    with torch.no_grad():
        network([volume])
    normal = PatchPlan("normal", (9, 7, 11), (1, 1, 1), (-2, -2, -2))
    subsampled = PatchPlan("subsampled_1", (6, 5, 7), (3, 3, 3), (-6, -6, -6), "mean")
    for found, plan in zip(given, (normal, subsampled), strict=True):
        wanted = torch.stack([cut_patch(one, (0, 0, 0), plan) for one in volume])
        if plan.reduction == "mean":
            assert torch.allclose(found, wanted, atol=1e-6)
        else:
            assert torch.equal(found[:, :, 2:-2, 2:-2, 2:-2], volume)


@pytest.mark.parametrize("norm", ["batch", "batch_rolling", "group", "none"])
def test_a_transfer_from_a_segmentation_network_receives_the_whole_encoder(norm: str) -> None:
    settings = {**PATHWAYS, "normalization": NormalizationSection(name=norm)}
    source = segmentation(ModelSection(**settings, fc=FCSection(widths=(5,))))
    target = classifier(ModelSection(name="encoder_classifier", **settings))
    plan = plan_transfer(sketch_network(source, name="source"), sketch_network(target, name="target"))
    actions = {tensor.name: tensor.action for tensor in plan.tensors}
    assert {name for name, action in actions.items() if action != "copied"} == {"head.weight", "head.bias"}
    assert set(actions) == set(target.state_dict())
    head = target.get_parameter("head.weight").clone()
    apply_plan(plan, {"source": source.state_dict()}, target.state_dict())
    for name, value in target.state_dict().items():
        assert torch.equal(value, head if name == "head.weight" else source.state_dict().get(name, value))
    assert not plan.equal


def test_channels_in_another_order_are_paired_by_name() -> None:
    source, target = segmentation(ModelSection(**PATHWAYS)), classifier()
    with torch.no_grad():
        source.get_parameter("normal.block_1.norm.bias").copy_(torch.tensor([1.0, 2.0]))
    plan = plan_transfer(
        sketch_network(source, name="source", channels=("flair", "t1")),
        sketch_network(target, name="target", channels=("t1", "flair")),
    )
    apply_plan(plan, {"source": source.state_dict()}, target.state_dict())
    assert target.get_parameter("normal.block_1.norm.bias").tolist() == [2.0, 1.0]
    kernels = [network.get_parameter("subsampled_1.block_1.conv.weight") for network in (source, target)]
    assert torch.equal(kernels[0].flip(1), kernels[1])


def test_depths_of_the_source_take_all_its_pathways() -> None:
    source, target = segmentation(ModelSection(**PATHWAYS)), classifier()
    plan = plan_transfer(
        sketch_network(source, name="source"), sketch_network(target, name="target"), TransferOptions(layers=(1,))
    )
    received = {tensor.layer for tensor in plan.tensors if tensor.action == "copied"}
    assert received == {"normal.block_1", "subsampled_1.block_1"}


def test_positions_of_pathways_can_be_frozen() -> None:
    plan = plan_freeze(FreezeSection(normal="1-2"), network_parts(classifier()))
    assert {name.split(".")[0] for name in plan.parameters} == {"normal", "subsampled_1"}
    heads = [group for group in classifier().layer_groups() if group.is_head]
    assert [(group.name, group.pathway, group.depth) for group in heads] == [("head", "fc", 3)]


def test_weights_are_a_function_of_the_seed_and_leave_the_global_state() -> None:
    before = torch.get_rng_state()
    first, again, other = (classifier(seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    for name in ("head.weight", "normal.block_1.conv.weight"):
        assert not torch.equal(first[name], other[name])


def test_the_encoder_of_another_network_keeps_what_runs_before_its_features() -> None:
    source = segmentation(ModelSection(name="UNet", arguments=UNET))
    network = classifier(OF_UNET)
    assert isinstance(network, FeatureClassifier)
    assert network.features == "model.1.submodule.1.submodule.adn.A"
    assert network.head.in_features == 16
    named = set(network.state_dict()) - {"head.weight", "head.bias"}
    assert named < set(source.state_dict())
    assert not any(name.startswith("network.model.2") for name in named)
    plan = plan_transfer(sketch_network(source, name="source"), sketch_network(network, name="target"))
    assert {t.name for t in plan.tensors if t.action == "copied"} == named
    for training in (True, False):
        scores = network.train(training)(volumes(16, 16, 16))
    assert scores.shape == (2, 2)
    scores.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_features_may_be_named_and_other_names_are_suggested() -> None:
    named = classifier(ModelSection(name=OF_UNET.name, arguments={**OF_UNET.arguments, "features": "model.0"}))
    assert isinstance(named, FeatureClassifier)
    assert named.head.in_features == 4
    with torch.no_grad():
        scores = named.eval()(volumes(16, 16, 16))
        inner = named.network.get_submodule("model.0")(volumes(16, 16, 16)[0])
        assert torch.allclose(scores, named.head(inner.mean((2, 3, 4))), atol=1e-6)
    assert [name for name in named.state_dict() if ".submodule" in name] == []
    with pytest.raises(ModelError, match=r"features must name a layer.*'model\.9'.*Did you mean"):
        classifier(ModelSection(name=OF_UNET.name, arguments={**OF_UNET.arguments, "features": "model.9"}))


def test_a_network_that_takes_no_volume_that_is_tried_is_one_sentence() -> None:
    with pytest.raises(ModelError, match="takes no volume of 32, 64, 96"):
        FeatureClassifier(nn.Sequential(nn.Conv2d(1, 2, 3)), None, num_channels=1, num_classes=2)
    with pytest.raises(ModelError, match=r"must name a layer.*There are: none"):
        FeatureClassifier(nn.Sequential(nn.Flatten()), None, num_channels=1, num_classes=2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"features": "x"}, "holds 'features' but no network"), ({"network": "multiscale"}, "other than 'multiscale'")],
)
def test_wrong_arguments_are_one_sentence(arguments: dict[str, str], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        classifier(ModelSection(name="encoder_classifier", arguments=arguments))


def test_settings_that_it_does_not_have_are_refused() -> None:
    for settings in ({"fc": FCSection(widths=(3,))}, {"upsampling": "linear"}):
        with pytest.raises(ValueError, match="belongs to 'multiscale'"):
            ModelSection(name="encoder_classifier", **settings)
    with pytest.raises(ValueError, match="normal belongs to 'multiscale'"):
        ModelSection(name="encoder_classifier", arguments={"network": "UNet"}, normal=PATHWAYS["normal"])


def test_one_patch_is_read_and_a_section_is_sketched() -> None:
    with pytest.raises(ModelError, match="reads 1 patch, the whole volume, got 2"):
        classifier()(volumes(4, 4, 4) * 2)
    made = sketch_section(SECTION, name="x", channels=("t1", "flair"), classes=("left", "right"), scores=True)
    assert [layer.name for layer in made.layers] == [group.name for group in classifier().layer_groups()]
    assert [layer.depth for layer in made.layers] == [1, 2, 1, 2, 3]


def test_rolling_statistics_move_on_after_a_step() -> None:
    rolling = ModelSection(name=SECTION.name, **PATHWAYS, normalization=NormalizationSection(name="batch_rolling"))
    network = classifier(rolling)
    network.train()(volumes(5, 5, 5))
    counts = [name for name in network.state_dict() if name.endswith("norm.count")]
    assert [int(network.state_dict()[name]) for name in counts] == [0, 0]
    network.after_step()
    assert [int(network.state_dict()[name]) for name in counts] == [1, 1]
