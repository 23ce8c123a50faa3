"""What `dmx model show` says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from dmx.cli import layers
from dmx.cli import model as command
from dmx.config.model import FCSection, ModelSection, NormalizationSection, PathwaySection
from dmx.errors import ModelError
from dmx.model.build import build_network
from dmx.model.memory import peak_bytes
from dmx.model.show import describe

EXPERIMENT = """
name: full
compatibility: deepmedic
cohort: {manifest: absent.csv, channels: [T1c, FLAIR], classes: [background, a, b, c, d]}
model:
  normal: {residual: [4, 6, 8]}
  subsampled: [{factor: 3}, {factor: 5}]
  fc: {widths: [250, 250], kernels: [3, 1, 1], padding: [mirror, valid, valid], residual: [2]}
  normalization: {name: batch_rolling}
"""


def test_a_report_counts_layers_fields_and_operations(full: ModelSection) -> None:
    network = build_network(full, num_channels=2, num_classes=5, compatibility="deepmedic")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    report = describe(network, full, (37, 37, 37), batch_size=2)
    assert report.parameters == sum(layer.parameters for layer in report.layers) == 2_008_901
    assert [pathway.receptive_field_scan for pathway in report.pathways[:3]] == [(17,) * 3, (49,) * 3, (81,) * 3]
    second = report.layers[1]
    assert (second.output_shape, second.multiply_adds) == ((33,) * 3, 33**3 * 30 * 30 * 27)
    assert report.multiply_adds == sum(layer.multiply_adds for layer in report.layers)
    assert report.training_bytes > report.prediction_bytes > 4 * report.parameters
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_averaging_sees_more_of_the_scan_than_striding(full: ModelSection) -> None:
    network = build_network(full, num_channels=2, num_classes=5)
    assert describe(network, full, (17, 17, 17), batch_size=2).pathways[1].receptive_field_scan == (51, 51, 51)


def test_memory_is_what_the_tensors_take() -> None:
    section = ModelSection(
        normal=PathwaySection(widths=(4,), kernels=3),
        subsampled=(),
        fc=FCSection(widths=(), dropout=0.0),
        activation="linear",
        normalization=NormalizationSection(name="none"),
    )
    network = build_network(section, num_channels=1, num_classes=2)
    weights = sum(parameter.numel() for parameter in network.parameters())
    # The most in the head: the scan, features, features plus bias, scores.
    features, scores = 4 * 10**3, 2 * 10**3
    largest = 12**3 + 2 * features + scores
    assert peak_bytes(network, (12, 12, 12), batch_size=1, training=False) == 4 * (weights + largest)
    assert peak_bytes(network, (12, 12, 12), batch_size=3, training=True) > 3 * 4 * (2 * 12**3 + 2 * features)


def test_layers_of_other_networks_are_described() -> None:
    section = ModelSection(name="UNet", arguments={"channels": [4, 8], "strides": [2]})
    network = build_network(section, num_channels=2, num_classes=3)
    report = describe(network, section, (8, 8, 8))
    assert report.pathways == ()
    assert report.layers[0].kernels == ((3, 3, 3),)
    assert report.layers[0].multiply_adds == 4**3 * 2 * 4 * 27
    # A transposed convolution spreads each voxel that it gets.
    head = next(layer for layer in report.layers if layer.is_head)
    assert (head.in_channels, head.multiply_adds) == (12, 4**3 * 12 * 3 * 27)
    assert isinstance(network.get_submodule(head.name), nn.ConvTranspose3d)


@pytest.mark.parametrize("columns", ["80", "200"])
def test_the_command_shows_the_network(columns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "full.yaml"
    file.write_text(EXPERIMENT)
    monkeypatch.setattr(layers.out, "width", int(columns))
    result = CliRunner().invoke(command.app, ["show", str(file), "--segment", "45", "--batch-size", "1"])
    assert result.exit_code == 0, result.output
    for words in ("2,008,901", "45×45×45 voxels → output 29×29×29", "150→250", "subsampled_2", "81×81×81 of the scan"):  # noqa: RUF001
        assert words in result.output
    assert max(map(len, result.output.splitlines())) <= int(columns)


def test_the_command_names_the_smallest_segment(tmp_path: Path) -> None:
    file = tmp_path / "full.yaml"
    file.write_text(EXPERIMENT)
    result = CliRunner().invoke(command.app, ["show", str(file), "--segment", "9"])
    assert isinstance(result.exception, ModelError)
    assert "at least 17x17x17" in str(result.exception)


def test_names_come_from_the_manifest_where_the_experiment_has_none(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text(
        "# cohort: c\n# classes: background, lesion\ncase,subject,channel_T1,label_map,split\n"
        "a,a,a.nii,b.nii,training\n"
    )
    file = tmp_path / "experiment.yaml"
    file.write_text(
        "name: x\ncohort: {manifest: cohort.csv}\nmodel: {name: UNet, arguments: {channels: [4, 8], strides: [2]}}\n"
    )
    result = CliRunner().invoke(command.app, ["show", str(file), "--segment", "8"])
    assert result.exit_code == 0, result.output
    assert "1→4" in result.output
    assert "(head)" in result.output


def test_a_section_is_not_changed_by_a_report(tiny: ModelSection) -> None:
    network = build_network(tiny, num_channels=1, num_classes=2).eval()
    describe(network, tiny, (9, 9, 9))
    assert tiny == replace(tiny)
    assert not network.training
