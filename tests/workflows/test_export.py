import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dmx.errors import CheckpointError, RunError
from dmx.tracking.mlflow_store import open_store
from dmx.workflows.export import Exported, ExportRequest, export, renamed
from dmx.workflows.train import train
from dmx.workflows.trained import open_trained
from tests.workflows.conftest import session, settings


@pytest.fixture
def run(project: Path, manifest: Path) -> str:
    return train(settings(manifest, training={"epochs": 1, "steps_per_epoch": 2}), session(project)).run.id


def exported(project: Path, run: str, name: str, **options: object) -> Exported:
    return export(ExportRequest(run=run, output=project / name, **options), session(project))


def test_both_forms_hold_the_weights_that_predict(project: Path, run: str) -> None:
    network = open_trained(open_store(root=project), run, checkpoint=None, root=project).network
    done = exported(project, run, "a.safetensors")
    exported(project, run, "a.pth")
    files = load_file(project / "a.safetensors"), torch.load(project / "a.pth", weights_only=True)
    wanted = network.state_dict()
    for state in files:
        assert set(state) == set(wanted)
        assert all(torch.equal(state[name], tensor) for name, tensor in wanted.items())
        network.load_state_dict(state)
    assert done.tensors == len(wanted)
    assert sorted(path.name for path in project.glob("*a.*")) == ["a.pth", "a.safetensors"]


def test_the_header_says_where_the_weights_come_from(project: Path, run: str) -> None:
    exported(project, run, "a.safetensors", checkpoint="initial")
    with safe_open(project / "a.safetensors", framework="pt") as file:
        said = file.metadata()
    assert said["dmx.run_id"] == run
    assert (said["dmx.checkpoint"], said["dmx.global_step"]) == ("initial", "0")
    assert json.loads(said["dmx.classes"]) == ["background", "ball"]
    assert len(said["dmx.sha256"]) == 64


def test_a_file_is_replaced_only_on_request(project: Path, run: str) -> None:
    (project / "a.pth").write_text("mine")
    with pytest.raises(CheckpointError, match=r"exists already.*--overwrite"):
        exported(project, run, "a.pth")
    assert (project / "a.pth").read_text() == "mine"
    exported(project, run, "a.pth", overwrite=True)
    assert torch.load(project / "a.pth", weights_only=True)


def test_what_cannot_be_written_is_one_sentence(project: Path, run: str) -> None:
    with pytest.raises(CheckpointError, match=r"must end in .safetensors, .pth or .pt, got 'a.onnx'"):
        exported(project, run, "a.onnx")
    with pytest.raises(CheckpointError, match="cannot be written"):
        exported(project, run, "cohort.csv/a.pth")
    with pytest.raises(RunError, match="no checkpoint 'epoch=7'"):
        exported(project, run, "a.pth", checkpoint="epoch=7")
    assert not (project / "a.pth").exists()


def test_names_lose_the_wrapper_once_and_get_a_prefix() -> None:
    wrapped = {"network.head.bias": torch.ones(1), "network.network.conv.weight": torch.zeros(1)}
    assert renamed(wrapped) == {"head.bias": torch.ones(1), "network.conv.weight": torch.zeros(1)}
    assert list(renamed(wrapped, strip="", prefix="module.")) == [f"module.{name}" for name in wrapped]
    plain = {"head.bias": torch.ones(1), "network.conv.weight": torch.ones(1)}
    assert list(renamed(plain)) == list(plain)
    with pytest.raises(CheckpointError, match=r"but one is 'head.bias'"):
        renamed(plain, strip="network.")
