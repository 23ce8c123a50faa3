"""Files ``.dmask.csv``."""

from pathlib import Path

import pytest
import torch

from dmx.errors import ConfigError, ModelError
from dmx.evaluation.layer_masks import LayerMask, read_masks, write_masks

TEXT = "conv5=chn,row\n3,1\n1,2,3\nfc3=chn\n7\nconv1=\n"
MASKS = {
    "conv5": LayerMask(channels=(3, 1), rows=(1, 2, 3)),
    "fc3": LayerMask(channels=(7,)),
    "conv1": LayerMask(),
}


def test_a_file_is_read_and_written_as_dnnbrain_does(tmp_path: Path) -> None:
    path = tmp_path / "a.dmask.csv"
    path.write_text(TEXT)
    assert read_masks(path) == MASKS
    write_masks(MASKS, path)
    assert path.read_text() == TEXT
    path.write_text("conv5=row,chn,\r\n\r\n2,\r\n5\r\n")
    assert read_masks(path) == {"conv5": LayerMask(channels=(5,), rows=(2,))}


def test_the_order_of_numbers_is_kept() -> None:
    values = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    mask = LayerMask(channels=(3, 1), rows=(4,), columns=(2, 2))
    assert torch.equal(mask.apply(values, layer="a"), values[:, [2, 0]][:, :, [3]][:, :, :, [1, 1]])
    assert torch.equal(LayerMask().apply(values, layer="a"), values)
    with pytest.raises(ModelError, match="Layer 'a' has 4 rows, counted from 1, got row 5"):
        LayerMask(rows=(1, 5)).apply(values, layer="a")
    with pytest.raises(ModelError, match="got channel 0"):
        LayerMask(channels=(0,)).apply(values, layer="a")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("conv5\n1\n", "line 1: it must name a layer"),
        ("=chn\n1\n", "line 1: it must name a layer"),
        ("conv5=channel\n1\n", "line 1: axes must be chn, row and col"),
        ("conv5=chn,chn\n1\n1\n", "line 1: axes must be"),
        ("conv5=chn\n", "line 1: the line with the numbers of 'chn' is missing"),
        ("\nconv5=chn\n1,x\n", "line 3: the numbers of 'chn' must count from 1"),
        ("conv5=chn\n0\n", "line 2: the numbers"),
        ("conv5=\nconv5=\n", "line 2: layer 'conv5' is named twice"),
    ],
)
def test_what_is_wrong_names_the_line(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.dmask.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_masks(path)


def test_names_of_files_and_layers_are_checked(tmp_path: Path) -> None:
    for name in ("a.csv", "missing.dmask.csv"):
        with pytest.raises(ConfigError):
            read_masks(tmp_path / name)
    with pytest.raises(ConfigError, match="must end with"):
        write_masks(MASKS, tmp_path / "a.csv")
    with pytest.raises(ConfigError, match="without '='"):
        write_masks({"a=b": LayerMask()}, tmp_path / "a.dmask.csv")
