"""Weights that are no numbers, and manifests that were changed, are a sentence and never a result."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

import dmx
from dmx.config.sections import PredictionSection
from dmx.errors import CheckpointError, DmxError, ModelError, TransferError
from dmx.evaluation.tiling import Predictor
from dmx.tracking.mlflow_store import open_store
from dmx.training.checkpoint import _digest, _manifest_bytes, weights_bytes, write_checkpoint
from dmx.transfer.finite import not_finite
from dmx.workflows.export import ExportRequest, export
from dmx.workflows.train import train
from dmx.workflows.trained import open_network, stored_checkpoint
from tests.workflows.conftest import session, settings
from tests.workflows.tiny_images import image_settings, make_images


def test_a_mask_of_zeros_and_minus_infinity_is_sound() -> None:
    mask = torch.triu(torch.full((3, 3), -torch.inf), diagonal=1)
    state = {"mask": mask, "a": torch.tensor([1.0, torch.nan]), "b": torch.tensor([torch.inf]), "n": torch.tensor(3)}
    assert not_finite(state) == ["a", "b"]


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_transfer_refuses_weights_that_are_no_numbers(tmp_path: Path, ending: str) -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.Conv3d(2, 2, 1))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in state.items()}
    state["0.weight"][0] = torch.nan
    state["0.bias"][0] = torch.inf
    path = tmp_path / f"net.{ending}"
    if ending == "pt":
        torch.save(state, path)
    else:
        path.write_bytes(weights_bytes(state))
    with pytest.raises(TransferError, match=r"2 tensors of 'source' hold NaN .*0\.bias, 0\.weight.*--exclude"):
        dmx.plan_transfer(path, network, head="copy").apply(network)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


class NoNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * torch.nan


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_scores_that_are_no_numbers_are_no_background(overlap: float) -> None:
    from dmx.model.module import ModuleNetwork

    network = ModuleNetwork(NoNumbers(), "x", num_channels=1, num_classes=2)
    section = PredictionSection(tile=(8, 8, 8), overlap=overlap)
    predictor = Predictor(network=network, section=section, device=torch.device("cpu"))
    with pytest.raises(ModelError, match="no numbers"):
        predictor.labels(torch.ones(1, 8, 8, 8))


def test_a_diverged_checkpoint_and_a_changed_manifest_are_one_sentence(project: Path, manifest: Path) -> None:
    run = train(settings(manifest, training={"epochs": 1, "steps_per_epoch": 1}), session(project)).run
    store = open_store(root=project)
    stored = stored_checkpoint(store, run.id, checkpoint="last", root=project)
    original = json.loads((stored.folder / "checkpoint.json").read_text())
    content = {key: value for key, value in original.items() if key != "sha256"}
    everywhere = changes({key: content[key] for key in ("contract", "files")})
    shallow = [{**content, **changed} for changed in everywhere[::9]]
    for changed in [*shallow, *({**content, key: None} for key in content)]:
        (stored.folder / "checkpoint.json").write_bytes(_manifest_bytes({**changed, "sha256": _digest(changed)}))
        with suppress(DmxError):
            assert open_network(store, run.id, checkpoint="last", root=project).sha256
    (stored.folder / "checkpoint.json").write_bytes(_manifest_bytes(original))
    state = dict(stored.content.model_state)
    name = next(iter(state))
    state[name] = state[name] * torch.nan
    files = {key: value for key, value in content.items() if key not in ("files", "format_version")}
    for entry in stored.folder.iterdir():
        entry.unlink()
    stored.folder.rmdir()
    write_checkpoint(stored.folder, model_state=state, training_state={}, manifest=files)
    with pytest.raises(CheckpointError, match=r"holds NaN or infinite weights.*--checkpoint"):
        open_network(store, run.id, checkpoint="last", root=project)
    with pytest.raises(CheckpointError, match="NaN"):
        dmx.load_model(run.id, checkpoint="last", store=project / "mlruns")


def changes(node: Any) -> list[Any]:
    """Return the JSON with each of its nodes replaced by null, by another type, or removed."""
    found: list[Any] = []
    if isinstance(node, dict):
        for key, value in node.items():
            found.append({k: v for k, v in node.items() if k != key})
            found += [{**node, key: other} for other in (None, 7, "x", [], {}, [[]], *changes(value))]
    elif isinstance(node, list):
        for index, value in enumerate(node):
            rest = (node[:index], node[index + 1 :])
            found.append([*rest[0], *rest[1]])
            found += [[*rest[0], other, *rest[1]] for other in (None, "x", [], {}, *changes(value))]
    return found


def test_a_run_of_images_is_exported_with_its_header(project: Path) -> None:
    run = train(image_settings(make_images(project)), session(project)).run.id
    export(ExportRequest(run=run, output=project / "a.safetensors"), session(project))
    with safe_open(project / "a.safetensors", framework="pt") as file:
        said = file.metadata()
    assert json.loads(said["dmx.channels"]) == ["red", "green", "blue"]
    assert json.loads(said["dmx.classes"]) == ["dark", "light"]
