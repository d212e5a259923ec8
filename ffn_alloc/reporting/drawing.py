"""What the figures share: colours, style, and a figure as SVG and PNG.

Colours are those of Okabe and Ito, which colour-blind readers tell apart; better is blue and
worse is orange everywhere. Only reporting/ imports matplotlib, and only where figures are drawn.
"""

import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import matplotlib
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

from ffn_alloc.reporting.comparison import BETTER, CANNOT_TELL, WORSE

BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#8A8F98", "#22262B"
OF_VERDICT = {BETTER: BLUE, WORSE: ORANGE, CANNOT_TELL: GREY}
OF_POSITION = {"first": "#E69F00", "middle": "#0072B2", "final": "#009E73"}
OTHERS = ("#CC79A7", "#56B4E9", "#D55E00", "#B8A800", "#7F4FC9", "#8A8F98")
WIDTH = 11.0  # inches
_PNG_DPI = 160
_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#B5BAC1",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": "#4A5058",
    "ytick.color": "#4A5058",
    "grid.color": "#E6E8EB",
    "legend.frameon": False,
    "svg.hashsalt": "ffn_alloc",  # the same file every time
    "svg.fonttype": "path",  # the same look without the fonts
}


@dataclass(frozen=True)
class Picture:
    """Its files are figures/NAME.svg and figures/NAME.png."""

    name: str
    caption: str
    svg: str
    png: bytes


def style() -> AbstractContextManager[None]:
    """Within it, figures are made and saved in the report's style."""
    return matplotlib.rc_context(_STYLE)


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Inches; belongs to no window and no global state."""
    return Figure(figsize=(width, height), layout="constrained")


def picture(figure: Figure, name: str, caption: str) -> Picture:
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    return Picture(name, caption, svg.getvalue(), png.getvalue())


def diverging() -> LinearSegmentedColormap:
    """Orange, nearly white, blue."""
    return LinearSegmentedColormap.from_list("improvement", [ORANGE, "#F6F6F4", BLUE])


def mix(start: str, end: str, share: float) -> tuple[float, ...]:
    return tuple(
        (1 - share) * a + share * b for a, b in zip(to_rgb(start), to_rgb(end), strict=True)
    )


def readable_on(colour: Sequence[float]) -> str:
    red, green, blue = colour[:3]
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else INK
