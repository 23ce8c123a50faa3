"""DeepMedic's networks: what its configurations describe, and its variables under our names."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dmx.config.model import ModelSection
from dmx.errors import CheckpointError, ConfigError
from dmx.model.build import build_network
from dmx.model.deepmedic_config import DeepMedicModel, read_model_config
from dmx.model.deepmedic_weights import deepmedic_variables, epochs_trained, read_deepmedic_state
from dmx.model.tensorflow_checkpoint import open_tensorflow_checkpoint
from tests.model import bundle

KEYS = {
    "BiasLayer.b": "norm.bias",
    "BatchNormLayer.g": "norm.weight",
    "BatchNormLayer.b": "norm.bias",
    "BatchNormLayer.array_mus_for_moving_avg": "norm.means",
    "BatchNormLayer.array_vars_for_moving_avg": "norm.variances",
    "PreluLayer.a": "activation.weight",
    "ConvolutionalLayer.w": "conv.weight",
}
SMALL = """
modelName = "small"
numberOfOutputClasses = 3
numberOfInputChannels = 1
numberFMsPerLayerNormal = [2, 3]
kernelDimPerLayerNormal = [[3, 3, 3], [3, 3, 1]]
segmentsDimTrain = [9, 9, 7]
"""
FULL = """
numberOfOutputClasses = 5
numberOfInputChannels = 2
numberFMsPerLayerNormal = [30, 30, 40, 40, 40, 40, 50, 50]
kernelDimPerLayerNormal = [[3, 3, 3]] * 8
layersWithResidualConnNormal = [4, 6, 8]
useSubsampledPathway = True
subsampleFactor = [[3, 3, 3], [5, 5, 5]]
numberFMsPerLayerFC = [250, 250]
kernelDimPerLayerFC = [[3, 3, 3], [1, 1, 1], [1, 1, 1]]
padTypePerLayerFC = ["mirror", None, None]
layersWithResidualConnFC = [2]
segmentsDimTrain = [37, 37, 37]
"""


def read(text: str) -> DeepMedicModel:
    return read_model_config(text, source="model.cfg")


def hidden_names(varmap: np.ndarray, *, fc_layers: int) -> dict[str, str]:
    """Return our name of each variable from the meaning that DeepMedic's own objects gave it."""
    result = {}
    for meaning, variable in varmap:
        if meaning == "softmax.b":
            result[str(variable)] = "head.conv.bias"
            continue
        path, block, key = str(meaning).split(".", 2)
        number = int(block.removeprefix("block"))
        pathway = {"norm": "normal", "fc": "fc"}.get(path) or f"subsampled_{int(path.removeprefix('sub')) + 1}"
        layer = "head" if path == "fc" and number == fc_layers else f"{pathway}.block_{number + 1}"
        result[str(variable)] = f"{layer}.{KEYS[key]}"
    return result


@pytest.mark.parametrize("name", ["tiny", "full"])
def test_the_order_of_creation_gives_the_names_that_deepmedic_gives(name: str, golden: Path) -> None:
    text = FULL if name == "full" else (golden / "ckpt_tiny" / "modelConfig.cfg").read_text()
    section = read(text).section
    variables = deepmedic_variables(section, num_channels=2, num_classes=5)
    with np.load(golden / f"{name}.npz") as arrays:
        assert {v.source: v.target for v in variables} == hidden_names(
            arrays["varmap"], fc_layers=len(section.fc.widths)
        )
        assert all(v.shape == arrays[f"var/{v.source}"].shape for v in variables)


def test_the_configurations_are_those_sections(golden: Path, tiny: ModelSection, full: ModelSection) -> None:
    for text, wanted in ((FULL, full), ((golden / "ckpt_tiny" / "modelConfig.cfg").read_text(), tiny)):
        built = [
            build_network(s, num_channels=2, num_classes=5, compatibility="deepmedic")
            for s in (read(text).section, wanted)
        ]
        assert built[0].spec == built[1].spec  # type: ignore[attr-defined]
    assert sum(p.numel() for p in build_network(read(FULL).section, num_channels=2, num_classes=5).parameters()) > 2e6


def test_the_checkpoint_gives_deepmedics_logits(golden: Path) -> None:
    folder = golden / "ckpt_tiny"
    model = read((folder / "modelConfig.cfg").read_text())
    variables = deepmedic_variables(model.section, num_channels=model.num_channels, num_classes=model.num_classes)
    checkpoint = open_tensorflow_checkpoint(folder / "tinyCnn.final.model.ckpt")
    network = build_network(model.section, num_channels=2, num_classes=5, compatibility="deepmedic").eval()
    network.load_state_dict(read_deepmedic_state(checkpoint, variables))
    assert epochs_trained(checkpoint) == 2
    with np.load(folder / "io.npz") as arrays, torch.no_grad():
        for kind in ("real", "rand"):
            logits = network([torch.from_numpy(arrays[f"{kind}/x{k}"]) for k in (0, 1)])
            assert np.abs(logits.numpy() - arrays[f"{kind}/logits"]).max() <= 1e-5


def weights(section: ModelSection) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    variables = deepmedic_variables(section, num_channels=1, num_classes=3)
    arrays = {v.source: rng.normal(size=v.shape).astype(np.float32) for v in variables}
    return arrays | {"net/sharedNewMu_B": np.zeros(2, np.float32), "trainer/init_lr": np.array(1, np.float32)}


def state(folder: Path, text: str, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    model = read(text)
    checkpoint = open_tensorflow_checkpoint(bundle.write(folder / "small", arrays))
    variables = deepmedic_variables(model.section, num_channels=model.num_channels, num_classes=model.num_classes)
    return read_deepmedic_state(checkpoint, variables)


def test_all_rows_of_a_ring_count_and_the_next_one_is_the_first(tmp_path: Path) -> None:
    section = read(SMALL).section
    found = state(tmp_path, SMALL, weights(section))
    network = build_network(section, num_channels=1, num_classes=3, compatibility="deepmedic")
    network.load_state_dict(found)
    norm = network.get_submodule("normal.block_2.norm")
    assert (int(norm.count), int(norm.count) % len(norm.means)) == (60, 0)
    mean, _ = norm.statistics()
    torch.testing.assert_close(mean, norm.means.mean(0))
    assert epochs_trained(open_tensorflow_checkpoint(tmp_path / "small")) is None


@pytest.mark.parametrize("option", ["rollAverageForBNOverThatManyBatches = 0", "activationFunction = 'relu'"])
def test_networks_without_norm_or_slopes_have_no_such_variables(tmp_path: Path, option: str) -> None:
    text = f"{SMALL}\n{option}"
    section = read(text).section
    found = state(tmp_path, text, weights(section))
    build_network(section, num_channels=1, num_classes=3, compatibility="deepmedic").load_state_dict(found)
    with pytest.raises(CheckpointError, match="not that of the configuration"):
        state(tmp_path, SMALL, weights(section))


def changed(change: str) -> dict[str, np.ndarray]:
    arrays = weights(read(SMALL).section)
    match change:
        case "missing":
            del arrays["net/W_2"]
        case "shape":
            arrays["net/W"] = np.zeros((2, 4, 3, 3, 3), np.float32)
        case "more":
            arrays["net/W_7"] = np.zeros(1, np.float32)
        case "diverged":
            arrays["net/b"][0] = np.nan
        case _:
            arrays = {"dense/kernel": np.zeros(2, np.float32)}
    return arrays


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", r"it lacks net/W_2 \[3, 3, 1, 1, 1\]"),
        ("shape", r"it has net/W \[2, 4, 3, 3, 3\] instead of \[2, 1, 3, 3, 3\]"),
        ("more", r"it also has net/W_7 \[1\]"),
        ("diverged", "'net/b' .* not finite"),
        ("other", "no checkpoint of DeepMedic.*dense/kernel"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_by_name(tmp_path: Path, change: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        state(tmp_path, SMALL, changed(change))


def test_a_huge_network_is_refused_before_it_is_built(tmp_path: Path) -> None:
    text = SMALL.replace("[2, 3]", "[1000000000, 1000000000]")
    with pytest.raises(CheckpointError, match=r"instead of \[1000000000, 1, 3, 3, 3\]"):
        state(tmp_path, text, weights(read(SMALL).section))


def test_every_option_has_its_place() -> None:
    model = read(
        SMALL
        + """
padTypePerLayerNormal = ["VALID", "zero"]
dropoutRatesNormal = [0, 0.1]
useSubsampledPathway = True
numberFMsPerLayerSubsampled = [[4, 5], [6, 7], [8, 9]]
subsampleFactor = [[3, 3, 1], [5, 5, 1]]
padTypePerLayerSubsampled = [None, "mirror"]
layersWithResidualConnSubsampled = []
dropoutRatesSubsampled = [0.2, 0.3]
numberFMsPerLayerFC = [10]
dropoutRatesFc = [0.4, 0.5]
segmentsDimVal = [5, 5, 3]
segmentsDimInference = [11, 11, 9]
convWeightsInit = ["normal", 0.02]
activationFunction = "elu"
rollAverageForBNOverThatManyBatches = 7
layersWithResidualConnNormal = [2]
segmentDimTrain = [1, 1, 1]
"""
    )
    section = model.section
    assert (section.normal.padding, section.normal.dropout) == (("valid", "zero"), (0, 0.1))
    assert section.normal.kernels == ((3, 3, 3), (3, 3, 1))
    assert [s.widths for s in section.subsampled] == [(4, 5), (6, 7), (8, 9)]
    # A factor that is not given grows by 2.
    assert [s.factor for s in section.subsampled] == [(3, 3, 1), (5, 5, 1), (7, 7, 3)]
    assert {(s.padding, s.residual, s.dropout) for s in section.subsampled} == {(("valid", "mirror"), (), (0.2, 0.3))}
    assert (section.fc.widths, section.fc.kernels, section.fc.dropout) == ((10,), 1, (0.4, 0.5))
    assert (section.weight_init.name, section.weight_init.std) == ("normal", 0.02)
    assert (section.activation, section.normalization.steps) == ("elu", 7)
    assert (model.training_segment, model.validation_segment, model.tile) == ((9, 9, 7), (5, 5, 3), (11, 11, 9))
    (note,) = model.notes
    assert "'segmentDimTrain' is no option" in note
    assert "Did you mean 'segmentsDimTrain'?" in note


def test_what_is_not_said_is_deepmedics_default() -> None:
    model = read(
        SMALL + "dropoutRatesNormal = [0.1, 0.1]\nlayersWithResidualConnNormal = [2]\nuseSubsampledPathway = 1"
    )
    (subsampled,) = model.section.subsampled
    assert (subsampled.factor, subsampled.widths) == ((3, 3, 3), (2, 3))
    # Residual connections mirror the normal pathway, dropout does not.
    assert (subsampled.residual, subsampled.dropout, subsampled.padding) == ((2,), 0.0, "valid")
    assert (model.tile, model.validation_segment, model.notes) == ((9, 9, 7), None, ())
    assert read(SMALL).section.subsampled == ()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("numberOfInputChannels = None", "'numberOfInputChannels' is missing"),
        ("numberOfOutputClasses = 1", "whole number of at least 2, got 1"),
        ("numberOfOutputClasses = True", "whole number of at least 2, got True"),
        ("numberFMsPerLayerNormal = [2, '3']", "list of whole numbers"),
        ("kernelDimPerLayerNormal = [3, 3]", "three whole numbers"),
        ("kernelDimPerLayerNormal = 3", "list of three whole numbers"),
        ("padTypePerLayerNormal = ['reflect', None]", "'zero' or 'mirror'"),
        ("dropoutRatesNormal = 0.5", "list of numbers"),
        ("lowerRankLayersNormal = [2]", "'lowerRankLayersNormal' must be empty"),
        ("activationFunction = 'selu'", "'activationFunction' must be 'prelu'"),
        ("convWeightsInit = ['fanIn']", "DEVIATION"),
        ("rollAverageForBNOverThatManyBatches = 'x'", "a whole number, got x"),
        ("useSubsampledPathway = True\nsubsampleFactor = [3, 3]", "three whole numbers"),
        ("useSubsampledPathway = True\nsubsampleFactor = [[3, 3, 3], 5]", "list of such lists"),
        ("useSubsampledPathway = True\nnumberFMsPerLayerSubsampled = [[2, 3], [4]]", "the same length"),
        ("segmentsDimTrain = list(range(3))", "'segmentsDimTrain' must be a plain value; expressions are not executed"),
        ("if True:\n    numberOfOutputClasses = 9", r"line 8: only assignments"),
        ("numberOfOutputClasses += 1", r"line 8: only assignments"),
        ("this is no Python", "it is not Python"),
    ],
)
def test_what_cannot_be_expressed_is_one_sentence(line: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        read(f"{SMALL}{line}\n")
    assert "model.cfg" in str(raised.value)


def test_nothing_is_executed(tmp_path: Path) -> None:
    read(f"{SMALL}\nimport pathlib\nunused = pathlib.Path({str(tmp_path / 'made')!r}).touch()\n")
    assert not (tmp_path / "made").exists()
