"""Images in and out. The only module that imports Pillow."""

import io
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray

from dmx.cohort.files import atomic_file
from dmx.cohort.fingerprint import pixels_hash
from dmx.errors import CohortError

if TYPE_CHECKING:
    from PIL.Image import Image

Interpolation = Literal["bilinear", "bicubic"]

# Decoders that only decode: PostScript, for one, would be run by another program.
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_MAX_PIXELS: Final = 2**27
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_EXIF_ORIENTATION = 0x0112

# The filters of warnings belong to the whole process: one thread at a time may change them.
_warnings_lock = Lock()


@dataclass(frozen=True)
class ImageKind:
    """What kind of image a file holds.

    Attributes:
        size: Height and width as it is meant to be seen, in pixels.
        mode: How the file keeps a pixel, in Pillow's words: ``L`` gray, ``RGB``, ``RGBA``, ``P`` with a palette, …
        pixels: Hash of what is seen, the same in another format without loss, flipped, or turned by a quarter.
    """

    size: tuple[int, int]
    mode: str
    pixels: str = ""


def read_image(path: str | Path, mode: Literal["RGB"] = "RGB") -> NDArray[np.uint8]:
    """Read an image as it is meant to be seen.

    Palettes are looked up, gray becomes three equal channels, 16 bits per pixel become 8 (65535 is white), transparent
    pixels are laid on white, CMYK is converted without a color profile, the turn that a camera notes (EXIF) is made.

    Args:
        path: PNG, JPEG (a camera's MPO: its first picture), TIFF, BMP, GIF, WebP, JPEG 2000 or PPM.
        mode: Channels of the result.

    Returns:
        uint8 [H, W, 3].

    Raises:
        CohortError: The file cannot be used; the message names it.
    """
    return _read(Path(path), mode)[0]


def image_kind(path: str | Path) -> ImageKind:
    """Read an image as :func:`read_image` does, and say what it is.

    Raises:
        CohortError: The file cannot be used; the message names it.
    """
    array, kind = _read(Path(path), "RGB")
    return replace(kind, pixels=pixels_hash(array))


def _read(path: Path, mode: str) -> tuple[NDArray[np.uint8], ImageKind]:
    try:
        # A pipe would wait for ever, a device never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CohortError(f"Image '{path}' cannot be read: it is not a file.")
        with path.open("rb") as stream:
            image = _open(path, stream)
            upright = _turned(image)
            array = np.array(_converted(path, upright, mode), dtype=np.uint8)
            return array, ImageKind(size=(upright.height, upright.width), mode=image.mode)
    except CohortError:
        raise
    except FileNotFoundError as error:
        raise CohortError(f"Image '{path}' cannot be read: there is no such file.") from error
    except MemoryError as error:
        raise CohortError(f"Image '{path}' cannot be read: not enough memory.") from error
    # A hostile file can make any part of a decoder fail; all of it is the file's fault.
    except Exception as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise CohortError(f"Image '{path}' is damaged or cut off: {reason.rstrip('.')}.") from error


def write_image(path: str | Path, array: NDArray[np.uint8]) -> None:
    """Write uint8 [H, W] or [H, W, 3] as PNG: complete or not at all, the same bytes for the same values.

    Raises:
        CohortError: The array is no image, or the file cannot be written.
    """
    from PIL import Image

    path = Path(path)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise CohortError(f"'{path}' must be written from uint8 [H, W] or [H, W, 3], got {array.dtype} {array.shape}.")
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    try:
        with atomic_file(path) as file:
            file.write(content.getvalue())
    except OSError as error:
        raise CohortError(f"'{path}' cannot be written: {error.strerror or error}.") from error


def resize_image(
    array: NDArray[np.uint8], size: tuple[int, int], *, interpolation: Interpolation = "bilinear"
) -> NDArray[np.uint8]:
    """Scale an image; where it gets smaller, each pixel averages all that it covers.

    Args:
        array: uint8 [H, W, 3] or [H, W].
        size: Height and width of the result.
        interpolation: ``bilinear`` or ``bicubic``.

    Returns:
        uint8 of the wanted size, with the channels that came.
    """
    from PIL import Image

    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    height, width = size
    return np.array(Image.fromarray(array).resize((width, height), method), dtype=np.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what Pillow remarks about an image that it can read; its size is checked here."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(path: Path, stream: BinaryIO) -> "Image":
    from PIL import Image, UnidentifiedImageError

    with _quiet():
        try:
            image = Image.open(stream, formats=_FORMATS)
        except Image.DecompressionBombError as error:
            raise _too_large(path) from error
        except UnidentifiedImageError as error:
            kinds = ", ".join(_FORMATS)
            raise CohortError(f"Image '{path}' is damaged or of a kind that is not read ({kinds}).") from error
        if image.width * image.height > _MAX_PIXELS:
            raise _too_large(path)
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":
            raise CohortError(f"Image '{path}' must be one picture, got {frames}: save the one that is meant.")
        # The only decoder that remarks while it decodes; the others do so beside each other.
        if image.format == "TIFF":
            image.load()
    image.load()
    return image


def _too_large(path: Path) -> CohortError:
    return CohortError(f"Image '{path}' is too large: at most {_MAX_PIXELS} pixels are read. Make it smaller.")


def _turned(image: "Image") -> "Image":
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    with _quiet():
        turn = turns.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _converted(path: Path, image: "Image", mode: str) -> "Image":
    import PIL.Image

    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # 0 and 65535 become 0 and 255.
        values = np.clip(np.asarray(image).astype(np.int32), 0, 65535)
        return PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert(mode)
    if image.mode in ("I", "F"):
        raise CohortError(
            f"Image '{path}' has 32 bits per pixel, of which nobody says what is black and white: save it with 8 or 16."
        )
    if image.has_transparency_data:
        colored = image.convert("RGBA")
        white = PIL.Image.new("RGBA", colored.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, colored).convert(mode)
    return image.convert(mode)
