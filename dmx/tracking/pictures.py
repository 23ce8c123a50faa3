"""Write figures and images to files."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

_DPI = 110


def save_figure(figure: "Figure | Image", path: Path) -> None:
    """Write a matplotlib figure or a picture as PNG."""
    if hasattr(figure, "savefig"):
        figure.savefig(path, format="png", dpi=_DPI, bbox_inches="tight")
    else:
        figure.save(path, format="PNG")
