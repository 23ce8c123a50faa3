"""Write figures to files."""

from pathlib import Path
from typing import TYPE_CHECKING

from dmx.tracking.folder import drafted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, its folder included."""
    with drafted(path) as draft:
        figure.savefig(draft, format="png", dpi=_DPI, bbox_inches="tight")
