"""Checkpoints of TensorFlow: what is whole is read, what is not is refused in words."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmx.errors import CheckpointError
from dmx.model.crc32c import crc32c
from dmx.model.tensorflow_checkpoint import open_tensorflow_checkpoint
from tests.model import bundle

ANY_FOLDER = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "net/W": rng.normal(size=(4, 2, 3, 3, 3)).astype(np.float32),
        "net/W_1": rng.normal(size=(5, 4, 3, 3, 3)).astype(np.float32),
        "net/b": rng.normal(size=3),
        "net/empty": np.zeros((0, 4), np.float32),
        "net/half": np.array([1.5, -2], np.float16),
        "trainer/epochs": np.array(7, np.int64),
        "trainer/flags": np.array([True, False]),
    }


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return bundle.write(tmp_path / "net.ckpt", tensors())


def index_of(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.index")


def data_of(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.data-00000-of-00001")


def read_all(prefix: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_tensorflow_checkpoint(prefix)
    return {name: checkpoint.read(name) for name in checkpoint.tensors}


def same(found: dict[str, torch.Tensor], wanted: dict[str, np.ndarray]) -> bool:
    """Whether values, shapes and types are the same."""
    return found.keys() == wanted.keys() and all(
        found[name].numpy().dtype == array.dtype and np.array_equal(found[name].numpy(), array)
        for name, array in wanted.items()
    )


@pytest.mark.parametrize("suffix", ["", ".index", ".data-00000-of-00001"])
def test_all_tensors_come_back_whichever_file_is_named(prefix: Path, suffix: str) -> None:
    assert same(read_all(prefix.with_name(prefix.name + suffix)), tensors())


def test_what_deepmedic_wrote_is_read(golden: Path) -> None:
    checkpoint = open_tensorflow_checkpoint(golden / "ckpt_tiny" / "tinyCnn.final.model.ckpt")
    with np.load(golden / "e2e_tiny_pat0003.npz") as arrays:
        names = [key.removeprefix("var/") for key in arrays.files if key.startswith("var/")]
        assert len(names) == 45
        assert {name for name in checkpoint.tensors if name.startswith("net/")} == set(names)
        for name in names:
            np.testing.assert_array_equal(checkpoint.read(name).numpy(), arrays[f"var/{name}"])
    assert int(checkpoint.read("trainer/num_epochs_trained")) == 2


@pytest.mark.parametrize("length", [0, 1, 3, 5, 100, 4095, 4096, 4097, 5000, 66_000])
def test_the_checksum_is_castagnolis_for_any_length(length: int) -> None:
    data = np.random.default_rng(length).integers(0, 256, length, dtype=np.uint8).tobytes()
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = (remainder >> 1) ^ (0x82F63B78 if remainder & 1 else 0)
    assert crc32c(data) == remainder ^ 0xFFFFFFFF


def test_a_flipped_bit_names_the_tensor(prefix: Path) -> None:
    data = bytearray(data_of(prefix).read_bytes())
    data[1000] ^= 4
    data_of(prefix).write_bytes(data)
    checkpoint = open_tensorflow_checkpoint(prefix)
    assert np.array_equal(checkpoint.read("net/b").numpy(), tensors()["net/b"])
    with pytest.raises(CheckpointError, match="checksum of tensor 'net/W_1' does not fit"):
        checkpoint.read("net/W_1")


def test_no_flipped_byte_of_the_table_is_overlooked(prefix: Path) -> None:
    whole = index_of(prefix).read_bytes()
    refused = 0
    for position in range(0, len(whole), 3):
        broken = bytearray(whole)
        broken[position] ^= 0x21
        index_of(prefix).write_bytes(broken)
        try:
            found = read_all(prefix)
        except CheckpointError:
            refused += 1
            continue
        # The bytes that fill up the footer mean nothing.
        assert position >= len(whole) - bundle.FOOTER
        assert same(found, tensors())
    assert refused > (len(whole) - bundle.FOOTER) // 3


def test_a_table_that_is_cut_short_is_refused(prefix: Path) -> None:
    whole = index_of(prefix).read_bytes()
    for length in range(0, len(whole), 3):
        index_of(prefix).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cannot be read as a TensorFlow checkpoint's table"):
            open_tensorflow_checkpoint(prefix)


def test_data_that_are_cut_short_name_the_tensor(prefix: Path) -> None:
    data_of(prefix).write_bytes(data_of(prefix).read_bytes()[:1000])
    checkpoint = open_tensorflow_checkpoint(prefix)
    with pytest.raises(CheckpointError, match=r"it has 1000 bytes; tensor 'net/W_1' should lie at bytes 864 to 3024"):
        checkpoint.read("net/W_1")
    data_of(prefix).unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.read("net/W")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"offset": 1 << 62}, "should lie at bytes"),
        ({"offset": (1 << 64) - 8}, "should lie at bytes"),
        ({"size": 1 << 40}, "needs 864"),
        ({"shard": 3}, "data file 3 of 1"),
        ({"dtype": 7}, "holds text"),
        ({"dtype": 20}, "unknown type 20"),
        ({"slices": 2}, "partitioned variable"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, change: dict[str, int], words: str) -> None:
    prefix = bundle.write(tmp_path / "net.ckpt", tensors(), changes={"net/W": change})
    checkpoint = open_tensorflow_checkpoint(prefix)
    with pytest.raises(CheckpointError, match=words) as raised:
        checkpoint.read("net/W")
    assert "net/W'" in str(raised.value)
    assert same({"net/b": checkpoint.read("net/b")}, {"net/b": tensors()["net/b"]})


def test_a_tensor_that_is_not_there_is_named(prefix: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensor 'net/V'"):
        open_tensorflow_checkpoint(prefix).read("net/V")


def entry(name: str) -> tuple[bytes, bytes]:
    return name.encode(), bundle.tensor_entry(np.zeros(2, np.float32), 0)


def repeated(count: int) -> bytes:
    """Return a table whose handles all point to the same block."""
    written = bundle.block([entry("a")])
    handle = bundle.varint(0) + bundle.varint(len(written) - 5)
    return bundle.close(written, [(b"%03d" % k, handle) for k in range(count)])


HEADER = (b"", bundle.header())
MANY_AXES = bundle.field(1, 1) + bundle.field(2, bundle.field(2, bundle.field(1, 1)) * 300)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (bundle.table([[HEADER, entry("a")]], kind=1), "compressed \\(snappy\\)"),
        (bundle.table([[HEADER, entry("a")]], kind=4), "compressed \\(kind 4\\)"),
        (bundle.table([[entry("a")]]), "no header"),
        (bundle.table([[(b"", bundle.header(shards=0))]]), "0 data files"),
        (bundle.table([[(b"", bundle.header(shards=1 << 40))]]), "data files"),
        (bundle.table([[(b"", bundle.header(endianness=1))]]), "big-endian"),
        (bundle.table([[HEADER, entry("b")], [entry("a")]]), "not in order"),
        (bundle.table([[HEADER, entry("a" * 5000)]]), "more than 4096 bytes"),
        (repeated(2), "block 1 overlaps the one before"),
        (bundle.table([[HEADER, (b"a", b"\xff" * 20)]]), "more than 64 bits"),
        (bundle.table([[HEADER, (b"a", bundle.field(2, b"x" * 9)[:5])]]), "a field is cut off"),
        (bundle.table([[HEADER, (b"a", b"\x0b")]]), "unknown kind 3"),
        (bundle.table([[HEADER, (b"a", bundle.field(1, b"text"))]]), "should hold a number"),
        (bundle.table([[HEADER, (b"a", bundle.field(2, 5))]]), "should hold a message"),
        (bundle.table([[HEADER, (b"a", MANY_AXES)]]), "more than 254 axes"),
        (
            bundle.table([[HEADER, (b"a", bundle.field(2, bundle.field(2, bundle.field(1, (1 << 64) - 1))))]]),
            "size below 0",
        ),
        (b"\0" * 10, "10 bytes are too few"),
        (b"PK" + b"\0" * 100, "of another kind"),
    ],
)
def test_a_table_that_cannot_be_is_refused_with_its_reason(tmp_path: Path, table: bytes, words: str) -> None:
    (tmp_path / "net.index").write_bytes(table)
    with pytest.raises(CheckpointError, match=words):
        open_tensorflow_checkpoint(tmp_path / "net")


def with_restarts(count: int) -> bytes:
    content = count.to_bytes(4, "little") + b"\0"
    written = content + bundle.masked_crc32c(content).to_bytes(4, "little")
    return bundle.close(written, [(b"a", bundle.varint(0) + bundle.varint(4))])


def test_counts_beyond_the_file_allocate_nothing(tmp_path: Path) -> None:
    (tmp_path / "net.index").write_bytes(with_restarts(0xFFFFFFFF))
    with pytest.raises(CheckpointError, match="more restart points than bytes"):
        open_tensorflow_checkpoint(tmp_path / "net")
    array = np.zeros(2, np.float32)
    shape = b"".join(bundle.field(2, bundle.field(1, 1 << 40)) for _ in range(5))
    huge = bundle.field(1, 1) + bundle.field(2, shape) + bundle.field(5, array.nbytes)
    (tmp_path / "net.index").write_bytes(bundle.table([[HEADER, (b"a", huge)]]))
    with pytest.raises(CheckpointError, match=r"8 bytes; shape .* needs"):
        open_tensorflow_checkpoint(tmp_path / "net").read("a")


def test_a_file_that_is_no_table_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "net.index").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="larger than 32 MiB"):
        open_tensorflow_checkpoint(tmp_path / "net")


def test_a_folder_is_answered_with_a_checkpoint_in_it(prefix: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a folder: .* such as '.*/net\.ckpt'"):
        open_tensorflow_checkpoint(prefix.parent)
    index_of(prefix).unlink()
    with pytest.raises(CheckpointError, match="but there is none"):
        open_tensorflow_checkpoint(prefix.parent)


def test_a_checkpoint_that_is_not_there_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"'net\.index' is missing"):
        open_tensorflow_checkpoint(tmp_path / "net")
    (tmp_path / "net.index").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_tensorflow_checkpoint(tmp_path / "net")


@ANY_FOLDER
@given(content=st.binary(max_size=200), handles=st.lists(st.tuples(st.binary(max_size=9), st.binary(max_size=9))))
def test_any_bytes_are_read_or_refused(tmp_path: Path, content: bytes, handles: list[tuple[bytes, bytes]]) -> None:
    (tmp_path / "net.index").write_bytes(bundle.close(content, handles))
    with pytest.raises(CheckpointError):
        open_tensorflow_checkpoint(tmp_path / "net")


@ANY_FOLDER
@given(values=st.dictionaries(st.text(max_size=8), st.binary(max_size=40), max_size=6))
def test_any_entries_are_read_or_refused(tmp_path: Path, values: dict[str, bytes]) -> None:
    """With right checksums, so that what is within the blocks is reached."""
    entries = sorted({name.encode(): value for name, value in values.items() if name}.items())
    (tmp_path / "net.index").write_bytes(bundle.table([[HEADER, *entries]]))
    (tmp_path / "net.data-00000-of-00001").write_bytes(b"\0" * 8)
    try:
        checkpoint = open_tensorflow_checkpoint(tmp_path / "net")
    except CheckpointError:
        return
    for name in checkpoint.tensors:
        with suppress(CheckpointError):
            assert checkpoint.read(name).numel() <= 8
