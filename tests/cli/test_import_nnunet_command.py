"""The command that brings in nnU-Net's networks."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.model import nnunet_folder

pytest.importorskip("dynamic_network_architectures", reason="the package with nnU-Net's networks is not installed")


def dmx(*words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dmx", *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def test_a_folder_becomes_a_run(project: Path) -> None:
    module = nnunet_folder.write(project / "model", nnunet_folder.plans())
    parameters = sum(parameter.numel() for parameter in module.parameters())
    done = dmx("model", "import", "nnunet", "model", "--name", "first", folder=project)
    said = " ".join(done.stdout.split())
    assert done.returncode == 0, done.stderr
    assert f"tensors, {parameters:,} parameters, trained for 3 epochs" in said
    assert "patches of 16x12x8 voxels of 1 x 1 x 2 mm" in " ".join((done.stdout + done.stderr).split())
