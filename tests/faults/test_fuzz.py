"""Any bytes are a value or a sentence of the project's own to the readers of files, in bounded memory and time.

``DMX_FUZZ_SECONDS`` says how long the slow test tries, over all readers.
"""

import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from dmx.cohort.importers.dataset_json import import_dataset_json
from dmx.cohort.importers.deepmedic import import_deepmedic
from dmx.cohort.manifest import read_manifest
from dmx.cohort.stim_csv import read_stim_csv
from dmx.cohort.volume import read_volume
from dmx.config.deepmedic import parse_assignments
from dmx.config.load import load_experiment
from dmx.errors import DmxError
from dmx.model.tensorflow_checkpoint import open_tensorflow_checkpoint
from dmx.training.checkpoint import read_checkpoint, write_checkpoint
from dmx.transfer.header import read_header
from dmx.transfer.plan import TransferPlan
from dmx.workflows.weights_file import open_weights_file
from tests.faults.bad_nifti import HEADERS, plain
from tests.faults.world import World

_SECONDS = float(os.environ.get("DMX_FUZZ_SECONDS", "600"))
_MEMORY = 3 * 2**30
_SLOWEST = 5.0


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """Draw any bytes, or those of a sound file that was cut, flipped, overwritten or has something put in."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=4000))
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(("cut", "flip", "write", "insert", "remove", "number"))):
            case "cut":
                del data[place:]
            case "flip" if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "write":
                part = draw(st.binary(min_size=1, max_size=16))
                data[place : place + len(part)] = part
            case "insert":
                data[place:place] = draw(st.sampled_from(_WORDS)) * draw(st.sampled_from((1, 2, 300)))
            case "remove":
                del data[place : place + draw(st.integers(1, 50))]
            case _:
                data[place : place + 8] = draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    return bytes(data)


_WORDS = (
    b"[",
    b"{",
    b'"',
    b",",
    b"\n",
    b"\0",
    b"\xff",
    b"../",
    b"!!python/name:os.system ",
    b"&a ",
    b"*a ",
    b": ",
    b"- ",
)
_WORDS += (b"9" * 400, b"1e999", b"NaN", b"-1", b"null", b"true", b"\xe2\x80\xae", b"\x1b[31m", b"#", b"'", b"\\", b"=")

Reader = Callable[[Path], object]


def _checkpoint(folder: Path) -> Path:
    return write_checkpoint(
        folder / "step_000000001",
        model_state={"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)},
        training_state={"position": {"epoch": 1}, "moments": torch.ones(3)},
        manifest={"epoch": 1, "global_step": 1, "model": {}, "contract": {}},
    )


def _part(name: str) -> tuple[str, Callable[[World], bytes], Reader]:
    """Return a reader of whole checkpoints in which one file is damaged; hashes are not compared."""

    def read(path: Path) -> object:
        folder = _checkpoint(path.parent / "checkpoints")
        (folder / name).write_bytes(path.read_bytes())
        return read_checkpoint(folder, verify=name == "checkpoint.json")

    def sound(world: World) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return (_checkpoint(Path(folder)) / name).read_bytes()

    return name.replace(".", "_"), sound, read


def _plan(world: World) -> bytes:
    from dmx.config.model import ModelSection
    from dmx.model.sketch import sketch_section
    from dmx.transfer.planning import plan_transfer

    sketch = sketch_section(ModelSection(), name="a", channels=("t1",), classes=("x", "y"))
    return json.dumps(plan_transfer(sketch, sketch).as_dict()).encode()


def _dataset(world: World) -> bytes:
    content = {
        "name": "x",
        "channel_names": {"0": "t1"},
        "labels": {"background": 0, "ball": 1},
        "file_ending": ".nii.gz",
    }
    content |= {"dataset": {"case_0": {"images": ["a.nii.gz"], "label": "b.nii.gz"}}}
    return json.dumps(content).encode()


def _imported(path: Path) -> object:
    return import_dataset_json(path, split_dir=path.parent / "split")


def _config(world: World) -> bytes:
    return (
        b"channelsTraining = ['a.cfg', 'b.cfg']\ngtLabelsTraining = 'c.cfg'\nnumberOfOutputClasses = 2\nw = [30] * 8\n"
    )


def _stimuli(world: World) -> bytes:
    return b"type=image\npath=pictures\ntitle=x\nstimID,RT\na.png,1\nb.png,2\n"


READERS: dict[str, tuple[str, Callable[[World], bytes], Reader]] = {
    "NIfTI": ("scan.nii", plain, read_volume),
    "packed NIfTI": (
        "scan.nii.gz",
        lambda world: world.scan(world.root / "packed.nii.gz").read_bytes(),
        read_volume,
    ),
    "manifest": ("m.csv", lambda world: world.manifest.read_bytes(), read_manifest),
    "experiment": ("x.yaml", lambda world: world.experiment.read_bytes(), load_experiment),
    "plan": ("plan.json", _plan, lambda path: TransferPlan.from_json(path.read_text(errors="replace"))),
    "safetensors header": ("w.safetensors", _part("model.safetensors")[1], read_header),
    "safetensors": ("w.safetensors", _part("model.safetensors")[1], lambda path: open_weights_file(path, name="a")),
    "torch file": ("w.pt", _part("training_state.pt")[1], lambda path: open_weights_file(path, name="a")),
    "checkpoint.json": _part("checkpoint.json"),
    "model.safetensors": _part("model.safetensors"),
    "training_state.pt": _part("training_state.pt"),
    "dataset.json": ("dataset.json", _dataset, _imported),
    "DeepMedic's lists": ("train.cfg", _config, import_deepmedic),
    "DeepMedic's values": ("train.cfg", _config, lambda path: parse_assignments(path.read_text(errors="replace"))),
    "stimuli": ("a.stim.csv", _stimuli, read_stim_csv),
    "TensorFlow's index": ("a.index", _config, lambda path: open_tensorflow_checkpoint(path.with_suffix(""))),
}


def fuzz(world: World, reader: str, *, examples: int, number: int) -> None:
    """Try a reader with damaged files."""
    name, make, read = READERS[reader]
    sound = make(world)

    @seed(number)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=damaged(sound))
    def attempt(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            start = time.monotonic()
            with suppress(DmxError):
                read(path)
            assert time.monotonic() - start < _SLOWEST
            # Nothing is written but what was asked for.
            assert {one.name for one in Path(folder).iterdir()} <= {name, "checkpoints", "split"}

    attempt()


def test_sound_files_are_read(world: World, tmp_path: Path) -> None:
    for reader in ("NIfTI", "packed NIfTI", "plan", "safetensors header", "model.safetensors"):
        name, make, read = READERS[reader]
        folder = tmp_path / reader
        folder.mkdir()
        (folder / name).write_bytes(make(world))
        assert read(folder / name) is not None
    assert len(HEADERS) > 30


@pytest.mark.parametrize("reader", READERS)
def test_any_bytes_are_a_value_or_a_sentence(world: World, reader: str) -> None:
    fuzz(world, reader, examples=15, number=1)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_any_bytes_for_a_long_time(world: World, reader: str) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, before[1]))
    deadline = time.monotonic() + _SECONDS / len(READERS)
    number = 2
    try:
        while time.monotonic() < deadline:
            fuzz(world, reader, examples=300, number=number)
            number += 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
