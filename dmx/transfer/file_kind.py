"""What a file of weights is, by its first bytes: its ending may say anything."""

from pathlib import Path

from dmx.errors import CheckpointError

_HEAD = 512
_LENGTH_BYTES = 8
_LFS = b"version https://git-lfs.github.com/spec/"
_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head")
_TORCH = (b"PK\x03\x04", b"\x80")
_OTHERS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file (Keras, MATLAB); convert it with the tool that wrote it",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"BZh": "compressed with bzip2; unpack it first",
    b"\xfd7zXZ\x00": "compressed with xz; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it first",
    b"\x93NUMPY": "an array of NumPy, which has no names of tensors",
}


def require_weights(path: Path) -> None:
    """Require that a file is not plainly something else that stands in its place.

    Raises:
        CheckpointError: It is empty, a pointer of Git LFS, a web page, or compressed; says which, and what to do.
    """
    head = _head(path)
    if head is None or _begins_safetensors(head):
        return
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    what = next((words for magic, words in _OTHERS.items() if head.startswith(magic)), None)
    if not head:
        what = "empty; download or copy it again"
    elif head.startswith(_LFS):
        what = "a pointer of Git LFS and not the weights; fetch them with 'git lfs pull' in that repository"
    elif text.startswith(_PAGES):
        what = (
            "a web page, not weights, as when a download leads to a page to sign in or confirm; open its address in a "
            "browser, or download the file itself (for example its 'raw' or 'resolve' address)"
        )
    if what is not None:
        raise CheckpointError(f"'{path}' is {what}.")


def is_safetensors(path: Path) -> bool:
    """Return whether a file is safetensors: by its content, and by its ending where that says nothing."""
    head = _head(path) or b""
    return _begins_safetensors(head) or (path.suffix == ".safetensors" and not head.startswith(_TORCH))


def _begins_safetensors(head: bytes) -> bool:
    """Return whether bytes begin with a length below 2^40 and JSON."""
    return head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{" and head[_LENGTH_BYTES - 3 : _LENGTH_BYTES] == b"\0" * 3


def _head(path: Path) -> bytes | None:
    """Return the first bytes of a file; ``None``: it cannot be read, which its reader will say."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError:
        return None
