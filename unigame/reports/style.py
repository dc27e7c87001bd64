"""One palette and one set of type sizes for every picture of the project.

The colours are those of Okabe and Ito, told apart with any colour vision.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1f2430"
MUTED = "#6b7280"
RULE = "#d7dbe2"
CLEAN = "#0072b2"
DRAWN = "#7d5fa8"
ADVERSARIAL = "#d55e00"
HARD = "#b8860b"
RIGHT = "#00795a"
WRONG = "#c0392b"

# Any: matplotlib types the keys as one literal per setting, which differ between its versions.
RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def save(figure: Figure, path: str | Path, *, dpi: int = 160) -> Path:
    """Write a figure to ``path`` (the suffix picks the format), making its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A fixed creator and no date: the same figures give the same bytes.
    metadata = {"Software": "unigame"} if path.suffix.lower() == ".png" else None
    figure.savefig(path, dpi=dpi, bbox_inches="tight", pad_inches=0.08, metadata=metadata)
    return path
