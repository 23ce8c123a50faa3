"""Checkpoints on disk: a folder that is complete or absent, and that says itself when it has been damaged.

::

    step_000012000/model.safetensors      weights
                   average.safetensors    averaged weights, if there are any
                   frozen.safetensors     weights that do not train, in neither of the two above; the checkpoints of a
                                          run share one file by hard links, so that the disk has it once
                   training_state.pt      the rest; opens with torch.load(weights_only=True)
                   checkpoint.json        what the checkpoint is, SHA-256 of each file and of itself; written last
"""

import hashlib
import io
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from dmx.errors import CheckpointError
from dmx.training.weights import read_weights, same_bits, weights_bytes

FORMAT_VERSION: Final = 2
MANIFEST: Final = "checkpoint.json"
MODEL: Final = "model.safetensors"
AVERAGE: Final = "average.safetensors"
FROZEN: Final = "frozen.safetensors"
TRAINING_STATE: Final = "training_state.pt"

# A version that knows no frozen file would find weights missing.
_WITHOUT_FROZEN = 1
_FILES = (MODEL, AVERAGE, FROZEN, TRAINING_STATE)
_RESERVED = ("format_version", "files", "sha256")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a checkpoint folder holds.

    Attributes:
        manifest: Content of ``checkpoint.json``.
        model_state: The weights.
        average_state: The averaged weights, or None.
        training_state: Optimizer, schedule, position and so on; None when it was not asked for.
    """

    manifest: Mapping[str, Any]
    model_state: Mapping[str, Tensor]
    average_state: Mapping[str, Tensor] | None
    training_state: Mapping[str, Any] | None

    @property
    def prediction_state(self) -> Mapping[str, Tensor]:
        """The weights to predict with: the averaged ones if there are any."""
        return self.model_state if self.average_state is None else self.average_state

    def as_state(self) -> dict[str, Any]:
        """Return what ``TrainState.load_state_dict`` takes.

        Raises:
            CheckpointError: The training state was not read.
        """
        if self.training_state is None:
            raise CheckpointError("The checkpoint was read without its training state, so no training can resume.")
        return {"model": self.model_state, "average": self.average_state, "training": self.training_state}


def write_checkpoint(
    folder: Path,
    *,
    model_state: Mapping[str, Tensor],
    training_state: Mapping[str, Any],
    manifest: Mapping[str, Any],
    average_state: Mapping[str, Tensor] | None = None,
    frozen: Collection[str] = (),
) -> Path:
    """Write a checkpoint so that the folder is complete or absent, whatever happens.

    Everything is written and forced to disk beside the folder, which then gets its name in one move and is read once
    more.

    Args:
        folder: Where; must not exist.
        model_state: Weights by name.
        training_state: Tensors and plain values only.
        manifest: What the checkpoint says about itself; JSON values.
        average_state: Averaged weights by name.
        frozen: Names of weights that hardly change from checkpoint to checkpoint. They go to a file of their own, which
            is a hard link to that of another checkpoint beside this one where the content is the same.

    Returns:
        The folder.

    Raises:
        CheckpointError: The folder exists, the disk is full or fails, or what was written reads differently.
    """
    if folder.exists():
        raise CheckpointError(f"Checkpoint '{folder}' exists already, and a checkpoint is never overwritten.")
    reserved = [key for key in _RESERVED if key in manifest]
    if reserved:
        raise CheckpointError(f"The manifest of a checkpoint must leave {', '.join(reserved)} to the writer.")
    files = {**_weights_files(model_state, average_state, frozen), TRAINING_STATE: _state_bytes(training_state)}
    entries = {name: _entry(data) for name, data in files.items()}
    # Through JSON first, so that the digest is that of what a reader will see (keys are strings then).
    version = FORMAT_VERSION if FROZEN in files else _WITHOUT_FROZEN
    content = json.loads(json.dumps({**manifest, "format_version": version, "files": entries}))
    files[MANIFEST] = _manifest_bytes({**content, "sha256": _digest(content)})
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        for name, data in files.items():
            if name != FROZEN or not _link(folder.parent, entries[name], partial / name):
                _write(partial / name, data)
        _sync_folder(partial)
        partial.rename(folder)
        _sync_folder(folder.parent)
    except OSError as error:
        raise CheckpointError(
            f"Checkpoint '{folder}' could not be written: {error.strerror or error}. Nothing of it was left behind; "
            "free some space or choose another folder, and resume from the checkpoint before."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    problems = verify_checkpoint(folder)
    if problems:
        raise CheckpointError(f"Checkpoint '{folder}' reads differently from what was written: {'; '.join(problems)}.")
    return folder


def read_checkpoint(folder: Path, *, verify: bool = True, with_training_state: bool = True) -> Checkpoint:
    """Read a checkpoint; nothing of a damaged one is returned, and opening one never executes code.

    Args:
        folder: Where it is.
        verify: Compare the SHA-256 of each file first.
        with_training_state: Also read what only a resume needs.

    Raises:
        CheckpointError: It is missing, damaged, incomplete, or written by a newer version.
    """
    manifest = read_manifest(folder)
    problems = verify_checkpoint(folder) if verify else [*_missing(folder, manifest), *_outside(folder, manifest)]
    if problems:
        raise CheckpointError(f"Checkpoint '{folder}' is damaged and was not loaded: {'; '.join(problems)}.")
    frozen = read_weights(folder / FROZEN) if FROZEN in manifest["files"] else {}
    return Checkpoint(
        manifest=manifest,
        model_state={**frozen, **read_weights(folder / MODEL)},
        average_state={**frozen, **read_weights(folder / AVERAGE)} if AVERAGE in manifest["files"] else None,
        training_state=_read_state(folder / TRAINING_STATE) if with_training_state else None,
    )


def prediction_files(folder: Path, manifest: Mapping[str, Any]) -> tuple[Path, ...]:
    """Return the files that hold the weights with which a checkpoint predicts; the first one that has a name counts."""
    files = manifest["files"]
    return tuple(folder / name for name in (AVERAGE if AVERAGE in files else MODEL, FROZEN) if name in files)


def weights_sha256(manifest: Mapping[str, Any]) -> str:
    """Return a hash of all weights with which a checkpoint predicts: of their file, or of the hashes of their two."""
    files = manifest["files"]
    own, frozen = str(files.get(AVERAGE, files[MODEL])["sha256"]), files.get(FROZEN)
    return own if frozen is None else hashlib.sha256(f"{own} {frozen['sha256']}".encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what a checkpoint says about itself, without its weights.

    Raises:
        CheckpointError: There is none, it is damaged, or it is newer than this version.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"'{folder}' is not a complete checkpoint: it has no {MANIFEST}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Checkpoint '{folder}' is damaged: {MANIFEST} cannot be read ({error}).") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"Checkpoint '{folder}' has format {version}, this version of dmx reads up to {FORMAT_VERSION}. Update dmx."
        )
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"Checkpoint '{folder}' is damaged: {MANIFEST} does not list its files.")
    if MODEL not in manifest["files"]:
        raise CheckpointError(f"Checkpoint '{folder}' is damaged: {MANIFEST} does not list {MODEL}.")
    for name, entry in manifest["files"].items():
        whole = isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys()
        if name not in _FILES or not whole:
            what = "but does not say what it holds" if name in _FILES else "which is none of its files"
            raise CheckpointError(f"Checkpoint '{folder}' is damaged, not loaded: {MANIFEST} lists '{name}', {what}.")
    return manifest


def verify_checkpoint(folder: Path) -> list[str]:
    """Return what is wrong with a checkpoint, one phrase per file; empty when it is whole."""
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        return [str(error)]
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    # A flipped bit can leave the values as they are, in the E of a number for example.
    untouched = (folder / MANIFEST).read_bytes() == _manifest_bytes(manifest)
    if not untouched or manifest.get("sha256") != _digest(content):
        # What it says about the files cannot be trusted either.
        return [f"{MANIFEST} was changed after it was written"]
    problems = [*_missing(folder, manifest), *_outside(folder, manifest)]
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            continue
        if path.stat().st_size != entry["bytes"]:
            problems.append(f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}")
        elif _file_sha256(path) != entry["sha256"]:
            problems.append(f"{name} differs from the file that was written (SHA-256)")
    return problems


def _missing(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    required = {MODEL, TRAINING_STATE, *manifest["files"]}
    return [f"{name} is missing" for name in sorted(required) if not (folder / name).is_file()]


def _outside(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Name the files that are links to places outside of the checkpoint."""
    home = folder.resolve()
    return [
        f"{name} is a link that leaves the folder"
        for name in sorted({MODEL, TRAINING_STATE, *manifest["files"]})
        if (folder / name).is_symlink() and not (folder / name).resolve().is_relative_to(home)
    ]


def _digest(content: Mapping[str, Any]) -> str:
    """Return a SHA-256 of JSON values that does not depend on their order or layout."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, indent=2).encode()


def _entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weights_files(
    model_state: Mapping[str, Tensor], average_state: Mapping[str, Tensor] | None, frozen: Collection[str]
) -> dict[str, bytes]:
    """Return the files of the weights, in which no frozen tensor stands twice."""
    apart = {name: tensor for name, tensor in model_state.items() if name in frozen}
    files = {MODEL: weights_bytes({name: tensor for name, tensor in model_state.items() if name not in apart})}
    if average_state is not None:
        files[AVERAGE] = weights_bytes(
            {
                name: tensor
                for name, tensor in average_state.items()
                if name not in apart or not same_bits(tensor, apart[name])
            }
        )
    if apart:
        files[FROZEN] = weights_bytes(apart)
    return files


def _link(checkpoints: Path, entry: Mapping[str, Any], path: Path) -> bool:
    """Link a frozen file to one of the same content in another checkpoint; tell whether there was one.

    The other file is read first, so that damage does not spread. Some file systems have no hard links.
    """
    for other in sorted(checkpoints.glob(f"[!.]*/{FROZEN}"), reverse=True):
        try:
            if other.is_symlink() or other.parent.is_symlink() or other.stat().st_size != entry["bytes"]:
                continue
            if _file_sha256(other) == entry["sha256"]:
                path.hardlink_to(other)
                return True
        except OSError:
            path.unlink(missing_ok=True)
    return False


def _state_bytes(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_state(path: Path) -> dict[str, Any]:
    try:
        with warnings.catch_warnings(action="ignore"):  # about the pickle protocol, of which a user knows nothing
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for damaged bytes
        why = str(error).partition("\n")[0]
        raise CheckpointError(f"'{path}' cannot be read as a training state without executing code: {why}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"'{path}' is no training state: it holds {type(state).__name__}.")
    return state
