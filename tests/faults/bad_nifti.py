"""Scans, label maps, rois and weight maps that cannot be used, through the commands that read them."""

import gzip
import os
import struct
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import numpy as np

from tests.faults.world import SHAPE, Bad, World

Change = Callable[[bytes], bytes]
_SEED = 20_240_817


def plain(world: World, array: np.ndarray | None = None) -> bytes:
    """Return a sound scan as the bytes of a ``.nii``."""
    return gzip.decompress(world.scan(world.root / "sound.nii.gz", array).read_bytes())


def _put(at: int, code: str, *values: float) -> Change:
    def change(data: bytes) -> bytes:
        packed = struct.pack(f"<{code}", *values)
        return data[:at] + packed + data[at + len(packed) :]

    return change


def _both(*changes: Change) -> Change:
    def change(data: bytes) -> bytes:
        for one in changes:
            data = one(data)
        return data

    return change


_NO_FORMS = _put(252, "hh", 0, 0)
_SFORM = (252, "hh", 0, 1)


def _sform(*rows: float) -> Change:
    return _both(_put(*_SFORM), _put(280, "12f", *rows))


NAN = float("nan")
# Fields of the NIfTI-1 header by offset: dim 40, datatype 70, pixdim 76, vox_offset 108, quatern_b 256, srow 280.
HEADERS: dict[str, Change] = {
    "sizeof_hdr 0": _put(0, "i", 0),
    "sizeof_hdr 347": _put(0, "i", 347),
    "sizeof_hdr of NIfTI-2": _put(0, "i", 540),
    "magic of a pair": _put(344, "4s", b"ni1\0"),
    "magic of nothing": _put(344, "4s", b"abcd"),
    "no magic": _put(344, "4s", b"\0\0\0\0"),
    "dim[0] 0": _put(40, "h", 0),
    "dim[0] 8": _put(40, "h", 8),
    "dim[0] -1": _put(40, "h", -1),
    "dim[0] 2": _put(40, "h", 2),
    "dim[0] 1": _put(40, "h", 1),
    "a zero-size axis": _put(42, "h", 0),
    "three zero-size axes": _put(42, "3h", 0, 0, 0),
    "a negative axis": _put(44, "h", -18),
    "4D": _both(_put(40, "h", 4), _put(42, "4h", 16, 9, 14, 2)),
    "5D": _both(_put(40, "h", 5), _put(42, "5h", 8, 9, 14, 2, 2)),
    "one slice more": _put(46, "h", 15),
    "32767 voxels per axis": _put(42, "3h", 32767, 32767, 32767),
    "seven axes of 32767": _put(40, "8h", 7, *[32767] * 7),
    "datatype 0": _put(70, "h", 0),
    "datatype bits": _put(70, "h", 1),
    "datatype RGB": _put(70, "h", 128),
    "datatype complex": _put(70, "h", 32),
    "datatype of 16 bytes": _put(70, "h", 1536),
    "datatype unknown": _put(70, "h", 12345),
    "data beyond the end": _put(108, "f", 1e6),
    "data at -1": _put(108, "f", -1.0),
    "data at byte 1": _put(108, "f", 1.0),
    "data at NaN": _put(108, "f", NAN),
    "data at infinity": _put(108, "f", float("inf")),
    "affine of NaN": _sform(*[NAN] * 12),
    "one NaN in the affine": _sform(1, 0, 0, NAN, 0, 1, 0, 0, 0, 0, 1, 0),
    "infinite affine": _sform(float("inf"), 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0),
    "affine of zeros": _sform(*[0] * 12),
    "singular affine": _sform(1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0),
    "flat affine": _sform(1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0),
    "spacing of a kilometer": _sform(1e6, 0, 0, 0, 0, 1e6, 0, 0, 0, 0, 1e6, 0),
    "spacing of a nanometer": _sform(1e-6, 0, 0, 0, 0, 1e-6, 0, 0, 0, 0, 1e-6, 0),
    "spacing beyond all numbers": _sform(3e38, 0, 0, 0, 0, 3e38, 0, 0, 0, 0, 3e38, 0),
    "negative pixdim": _both(_NO_FORMS, _put(80, "3f", -1, -1, -1)),
    "pixdim of zeros": _both(_NO_FORMS, _put(80, "3f", 0, 0, 0)),
    "pixdim of NaN": _both(_NO_FORMS, _put(80, "3f", NAN, NAN, NAN)),
    "no quaternion": _both(_put(252, "hh", 1, 0), _put(256, "3f", 1, 1, 1)),
    "quaternion of NaN": _both(_put(252, "hh", 1, 0), _put(256, "3f", NAN, 0, 0)),
    "offset of NaN": _both(_put(252, "hh", 1, 0), _put(268, "3f", NAN, 0, 0)),
    "scaled beyond all numbers": _put(112, "2f", 3e38, 3e38),
}
WHOLE: dict[str, Change] = {
    "nothing": lambda data: b"",
    "one byte": lambda data: data[:1],
    "half a header": lambda data: data[:174],
    "one byte of the header missing": lambda data: data[:347],
    "header without data": lambda data: data[:352],
    "half of the data": lambda data: data[: 352 + (len(data) - 352) // 2],
    "one byte missing": lambda data: data[:-1],
    "text": lambda data: b"# this is no scan\n" * 100,
    "a web page": lambda data: b"<!DOCTYPE html><html><body>404</body></html>" * 20,
    "random bytes": lambda data: np.random.default_rng(_SEED).bytes(len(data)),
    "a header of ones": lambda data: b"\xff" * len(data),
    "gzip without the ending": gzip.compress,
    "DICOM": lambda data: b"\0" * 128 + b"DICM" + data,
    "NIfTI-2 with dimensions of 2^62": lambda data: _nifti2(2**62, 2**62, 2**62),
    "NIfTI-2 with negative dimensions": lambda data: _nifti2(-5, 4, 4),
    "NIfTI-2 cut off": lambda data: _nifti2(4, 4, 4)[:500],
}


def _nifti2(*sizes: int) -> bytes:
    from nibabel.nifti2 import Nifti2Image

    data = bytearray(Nifti2Image(np.zeros((4, 4, 4), np.float32), np.eye(4)).to_bytes())
    data[16 : 16 + 32] = struct.pack("<4q", 3, *sizes)
    return bytes(data)


def _flip(data: bytes, byte: int, bit: int) -> bytes:
    return data[:byte] + bytes([data[byte] ^ (1 << bit)]) + data[byte + 1 :]


def _packed(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield damaged gzip files."""
    whole = gzip.compress(data, mtime=0)
    yield "gzip of nothing", b""
    for name, cut in (("1 byte", 1), ("its header", 10), ("18 bytes", 18), ("a half", len(whole) // 2)):
        yield f"gzip cut off after {name}", whole[:cut]
    for missing in (1, 4, 8, 9, 100):
        yield f"gzip without its last {missing} bytes", whole[:-missing]
    draw = np.random.default_rng(_SEED)
    for number in range(16):
        byte, bit = int(draw.integers(12, len(whole) - 4)), int(draw.integers(8))
        yield f"gzip with a flipped bit ({number})", _flip(whole, byte, bit)
    yield "gzip with another checksum", whole[:-8] + b"\1\2\3\4" + whole[-4:]
    yield "gzip without its magic", b"\x1f\x8c" + whole[2:]
    yield "a .nii named .gz", data
    yield "text named .gz", b"no scan at all\n" * 50
    yield "gzip of text", gzip.compress(b"no scan at all\n" * 50)
    yield "gzip of nothing inside", gzip.compress(b"")
    yield "gzip of a header that promises more", gzip.compress(_put(42, "3h", 2000, 2000, 500)(data))
    yield "gzip with zeros behind its first half", whole[: len(whole) // 2] + b"\0" * (len(whole) // 2)


def _one_scan(name: str, file: str, write: Callable[[World, Path], object]) -> Iterator[Bad]:
    """Yield a bad scan as input of each command in turn."""

    def make(world: World, here: Path) -> None:
        write(world, here / file)
        world.cohort_with(here, "channel_t1", file)

    words = _COMMANDS[next(_TURN)]
    yield Bad(f"{name}: {' '.join(words[:2])}", words, ("scan|case_0",), make)


_TRAIN = ("train", "{root}/balls.yaml", "--set", "cohort.manifest={here}/cohort.csv")
_COMMANDS = (
    ("cohort", "check", "{here}/cohort.csv"),
    _TRAIN,
    ("predict", "{here}/cohort.csv", "--from-run", "{run}", "-o", "{here}/out"),
    ("cohort", "show", "{here}/cohort.csv", "-o", "{here}/out", "--case", "case_0"),
)
_TURN = cycle(range(len(_COMMANDS)))


def _file(change: Change) -> Callable[[World, Path], object]:
    return lambda world, path: path.write_bytes(change(plain(world)))


def damaged() -> Iterator[Bad]:
    """Yield files whose bytes are wrong."""
    for name, change in {**HEADERS, **WHOLE}.items():
        yield from _one_scan(name, "scan.nii", _file(change))
    names = [name for name, _ in _packed(b"\0" * 1000)]
    for index, name in enumerate(names):

        def write(world: World, path: Path, index: int = index) -> object:
            return path.write_bytes(list(_packed(plain(world)))[index][1])

        yield from _one_scan(name, "scan.nii.gz", write)


def _link(target: str) -> Callable[[World, Path], object]:
    return lambda world, path: path.symlink_to(target)


NO_FILES: dict[str, tuple[str, Callable[[World, Path], object]]] = {
    "a folder": ("scan.nii.gz", lambda world, path: path.mkdir()),
    "nothing there": ("scan.nii.gz", lambda world, path: None),
    "a pipe": ("scan.nii", lambda world, path: os.mkfifo(path)),
    "a dangling link": ("scan.nii.gz", _link("nowhere.nii.gz")),
    "a link to itself": ("scan.nii.gz", _link("scan.nii.gz")),
    "an endless device": ("scan.nii", _link("/dev/zero")),
    "an empty device": ("scan.nii", _link("/dev/null")),
    "an Analyze header": ("scan.hdr", _file(lambda data: data)),
    "an MGH file": ("scan.mgz", _file(lambda data: data)),
    "no ending": ("scan", _file(lambda data: data)),
}


def unreadable() -> Iterator[Bad]:
    """Yield what is no file that can be read."""
    for name, (file, write) in NO_FILES.items():
        yield from _one_scan(name, file, write)
        yield from _one_scan(f"{name}, again", file, write)


def _values(kind: str) -> np.ndarray:
    inside = np.zeros(SHAPE)
    inside[4:9, 4:9, 4:9] = 1
    noise = np.random.default_rng(3).normal(size=SHAPE)
    some = {
        "NaN in one voxel": np.where(np.arange(inside.size).reshape(SHAPE) == 5, np.nan, noise),
        "NaN everywhere": np.full(SHAPE, np.nan),
        "infinite in one voxel": np.where(np.arange(inside.size).reshape(SHAPE) == 5, np.inf, noise),
        "the same value everywhere": np.full(SHAPE, 4.0),
        "labels out of range": inside * 2,
        "a label of 255": inside * 255,
        "a label of 1e9": inside * 1e9,
        "negative labels": -inside,
        "labels of one half": inside * 0.5,
        "labels of 1.3": inside * 1.3,
        "labels of NaN": np.where(inside > 0, np.nan, 0),
        "infinite labels": np.where(inside > 0, np.inf, 0),
        "empty roi": inside * 0,
        "roi of twos": inside * 2,
        "roi of one half": inside * 0.5,
        "roi of NaN": np.where(inside > 0, np.nan, 0),
        "negative roi": -inside,
        "negative weights": -inside,
        "no weight at all": inside * 0,
        "weights of NaN": np.where(inside > 0, np.nan, 0),
        "infinite weights": np.where(inside > 0, np.inf, 0),
    }
    return some[kind]


VALUES = {
    "channel_t1": ("NaN in one voxel", "NaN everywhere", "infinite in one voxel", "the same value everywhere"),
    "label_map": (
        "labels out of range",
        "a label of 255",
        "a label of 1e9",
        "negative labels",
        "labels of one half",
        "labels of 1.3",
        "labels of NaN",
        "infinite labels",
    ),
    "roi": ("empty roi", "roi of twos", "roi of one half", "roi of NaN", "negative roi"),
    "weight_w": ("negative weights", "no weight at all", "weights of NaN", "infinite weights"),
}


def values() -> Iterator[Bad]:
    """Yield sound files that hold what they must not, and files that do not fit each other."""
    for column, kinds in VALUES.items():
        for kind in kinds:

            def make(world: World, here: Path, column: str = column, kind: str = kind) -> None:
                world.scan(here / "file.nii.gz", _values(kind))
                world.cohort_with(here, column, "file.nii.gz")

            for words in (_COMMANDS[0], _TRAIN):
                yield Bad(f"{kind}: {words[0]}", words, ("case_0", column), make)
    for kind, change in GRIDS.items():

        def differs(world: World, here: Path, change: Change = change) -> None:
            (here / "file.nii").write_bytes(change(plain(world, _values("empty roi") + (np.indices(SHAPE)[0] > 8))))
            world.cohort_with(here, "label_map", "file.nii")

        for words in (_COMMANDS[0], _TRAIN):
            yield Bad(f"{kind}: {words[0]}", words, ("case_0", "label_map"), differs)


# The label map's grid differs from that of its scan.
GRIDS: dict[str, Change] = {
    "another shape": _put(42, "3h", 18, 16, 14),
    "another orientation": _sform(1, 0, 0, 15, 0, 1, 0, 0, 0, 0, 2, 0),
    "another voxel size": _sform(-1, 0, 0, 15, 0, 1, 0, 0, 0, 0, 1, 0),
    "another place": _sform(-1, 0, 0, 45, 0, 1, 0, 0, 0, 0, 2, 0),
}


def bad_scans() -> list[Bad]:
    return [*damaged(), *unreadable(), *values()]
