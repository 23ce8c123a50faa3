"""The network in compatibility mode, against arrays that DeepMedic itself computed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dmx.config.model import ModelSection
from dmx.model.build import build_network
from dmx.model.multiscale import MultiScaleNet

_KEYS = {
    "BiasLayer.b": "norm.bias",
    "BatchNormLayer.g": "norm.weight",
    "BatchNormLayer.b": "norm.bias",
    "BatchNormLayer.array_mus_for_moving_avg": "norm.means",
    "BatchNormLayer.array_vars_for_moving_avg": "norm.variances",
    "PreluLayer.a": "activation.weight",
    "ConvolutionalLayer.w": "conv.weight",
}


def layer_name(network: MultiScaleNet, block: str) -> str:
    """`sub0.block2` of DeepMedic is `subsampled_1.block_3`; the last fc block is the head."""
    path, number = block.split(".block")
    pathway = {"norm": "normal", "fc": "fc"}.get(path) or f"subsampled_{int(path.removeprefix('sub')) + 1}"
    layers = next(p for p in (*network.spec.parallel, network.spec.fc) if p.name == pathway).layers
    return layers[int(number)].name


def names(network: MultiScaleNet, varmap: np.ndarray) -> dict[str, str]:
    """Our name of each of DeepMedic's variables."""
    result = {}
    for meaning, variable in varmap:
        path, _, rest = str(meaning).partition(".block")
        number, _, key = rest.partition(".")
        result[str(variable)] = (
            "head.conv.bias"
            if meaning == "softmax.b"
            else f"{layer_name(network, f'{path}.block{number}')}.{_KEYS[key]}"
        )
    return result


def load(section: ModelSection, arrays: np.lib.npyio.NpzFile, *, prefix: str, dropout: bool = True) -> MultiScaleNet:
    if not dropout:
        section = replace(section, fc=replace(section.fc, dropout=0.0))
    network = build_network(section, num_channels=2, num_classes=5, compatibility="deepmedic")
    assert isinstance(network, MultiScaleNet)
    state = network.state_dict()
    for variable, name in names(network, arrays["varmap"]).items():
        if f"{prefix}{variable}" in arrays:
            state[name] = torch.from_numpy(arrays[f"{prefix}{variable}"])
    network.load_state_dict(state)
    return network


def inputs(arrays: np.lib.npyio.NpzFile, kind: str) -> list[Tensor]:
    return [torch.from_numpy(arrays[key]) for key in sorted(arrays.files) if key.startswith(f"{kind}/x")]


@pytest.mark.parametrize("kind", ["rand", "real"])
@pytest.mark.parametrize(("name", "tolerance"), [("tiny", 1e-5), ("full", 2e-5)])
def test_logits_and_block_shapes_are_deepmedics(
    name: str, kind: str, tolerance: float, golden: Path, request: pytest.FixtureRequest
) -> None:
    with np.load(golden / f"{name}.npz") as arrays:
        network = load(request.getfixturevalue(name), arrays, prefix="var/").eval()
        patches = inputs(arrays, kind)
        shapes: dict[str, tuple[int, ...]] = {}
        prefix = f"{kind}/blockshape/"
        blocks = [key.removeprefix(prefix) for key in arrays.files if key.startswith(prefix)]
        for block in blocks:
            module = network.get_submodule(layer_name(network, block))
            module.register_forward_hook(lambda _, __, out, block=block: shapes.update({block: tuple(out.shape)}))
        with torch.no_grad():
            logits = network(patches)
        plan = network.segment_plan(tuple(patches[0].shape[2:]))
        assert [patch.shape for patch in plan.patches] == [tuple(patch.shape[2:]) for patch in patches]
        assert plan.output_shape == logits.shape[2:]
        assert shapes == {block: tuple(arrays[f"{prefix}{block}"]) for block in blocks}
        difference = np.abs(logits.numpy() - arrays[f"{kind}/logits"]).max()
        assert difference <= tolerance


@pytest.mark.parametrize("name", ["tiny", "full"])
def test_each_kernels_output_is_deepmedics(name: str, golden: Path, request: pytest.FixtureRequest) -> None:
    seen: dict[str, Tensor] = {}
    with np.load(golden / f"{name}.npz") as arrays:
        network = load(request.getfixturevalue(name), arrays, prefix="var/").eval()
        blocks = [
            key.removeprefix("rand/blockout_first_item/") for key in arrays.files if "/blockout_first_item/" in key
        ]
        for block in blocks:
            conv = network.get_submodule(f"{layer_name(network, block)}.conv")
            # A copy: the shortcut is added in place afterwards.
            conv.register_forward_hook(lambda _, __, out, block=block: seen.update({block: out[0].clone()}))
        with torch.no_grad():
            network(inputs(arrays, "rand"))
        bias = network.head.conv.bias
        assert blocks
        for block in blocks:
            got = seen[block] - bias.view(-1, 1, 1, 1) if layer_name(network, block) == "head" else seen[block]
            wanted = arrays[f"rand/blockout_first_item/{block}"]
            difference = np.abs(got.detach().numpy() - wanted.reshape(got.shape)).max()
            assert difference <= 1e-5 * max(1.0, np.abs(wanted).max()), block


def test_a_common_epsilon_is_not_deepmedics(full: ModelSection, golden: Path) -> None:
    with np.load(golden / "full.npz") as arrays:
        network = load(full, arrays, prefix="var/").eval()
        for module in network.modules():
            if hasattr(module, "epsilon"):
                module.epsilon = 1e-5
        with torch.no_grad():
            logits = network(inputs(arrays, "real"))
        assert np.abs(logits.numpy() - arrays["real/logits"]).max() > 2e-5


def deepmedic_cost(network: MultiScaleNet, logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with 1e-6 in the logarithm, and both penalties at DeepMedic's default weights."""
    probabilities = torch.softmax(logits, 1).gather(1, target[:, None])
    penalties = sum(1e-6 * kernel.abs().sum() + 1e-4 * kernel.square().sum() for kernel in network.kernel_parameters())
    return -torch.log(probabilities + 1e-6).mean() + penalties


def test_gradients_and_statistics_of_a_training_step_are_deepmedics(tiny: ModelSection, golden: Path) -> None:
    tag = "rms_nest_nonnorm"
    with np.load(golden / "tiny_train.npz") as arrays:
        network = load(tiny, arrays, prefix="init/", dropout=False).train()
        patches = [torch.from_numpy(arrays[key][:10]) for key in ("x0", "x1")]
        logits = network(patches)
        assert np.abs(torch.softmax(logits, 1).detach().numpy() - arrays[f"{tag}/train_probs0"]).max() <= 1e-5
        cost = deepmedic_cost(network, logits, torch.from_numpy(arrays["y"][:10]).long())
        assert cost.item() == pytest.approx(float(arrays[f"{tag}/costs"][0]), abs=1e-5)
        cost.backward()
        ours = names(network, arrays["varmap"])
        compared = 0
        for variable, name in ours.items():
            if f"{tag}/grad0/{variable}" in arrays:
                gradient = network.get_parameter(name).grad
                assert gradient is not None
                assert np.abs(gradient.numpy() - arrays[f"{tag}/grad0/{variable}"]).max() <= 1e-5, name
                compared += 1
        assert compared == len(list(network.parameters()))
        network.after_step()
        state = network.state_dict()
        scales = {variable: name for variable, name in ours.items() if "/gBn" in variable}
        for variable, name in scales.items():
            layer = name.removesuffix(".weight")
            for ring, shared in (("means", "sharedNewMu_B"), ("variances", "sharedNewVar_B")):
                wanted = arrays[f"{tag}/after1/{variable.replace('gBn', shared)}"]
                # Relative: a mean in double precision lies between, nearer to ours.
                np.testing.assert_allclose(state[f"{layer}.{ring}"][0].numpy(), wanted, rtol=1e-5, atol=1e-5)
        assert len(scales) == 5
