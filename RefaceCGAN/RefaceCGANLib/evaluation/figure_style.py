"""The look of all figures: sizes, colours, type, and how a figure is made and written.

matplotlib's objects are used without pyplot, so that no window and no global figure is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec

from ..volume.files import atomic_path

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.5, 7.2  # inches: the width of a column, of a page
DPI = 150
COLOURS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"  # Okabe and Ito 2008
MARKERS = "osD^vP"
INK, GREY, PALE = "#222222", "#767676", "#C4C4C4"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "figure.titlesize": 8,
    "figure.titleweight": "bold",
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": GREY,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "axes.labelcolor": INK,
    "pdf.fonttype": 42,  # text stays text
}

Arguments = ParamSpec("Arguments")


class Style(NamedTuple):
    """How one tool looks in every figure."""

    colour: str
    marker: str


def styles_of(tools: Sequence[str]) -> dict[str, Style]:
    """A colour and a marker for each tool by its place: six colours that colour-blind people can tell apart, and
    beyond six tools the same with other markers."""
    count = len(COLOURS)
    return {
        tool: Style(COLOURS[i % count], MARKERS[(i + i // count) % len(MARKERS)]) for i, tool in enumerate(tools)
    }


def styled(draw: Callable[Arguments, list[Path]]) -> Callable[Arguments, list[Path]]:
    @wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> list[Path]:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def new_figure(width: float, height: float, pad: float = 0.04) -> Figure:
    """An empty figure (width and height in inches) with automatic layout and `pad` inches about each panel."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=pad, h_pad=pad, wspace=0.02, hspace=0.02)
    figure = Figure((width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def panels_of(rows: pd.DataFrame) -> tuple[Figure, list[tuple[Axes, str, pd.DataFrame]]]:
    """A figure with a row per backend and a column per embedder, and the panels: axes, title, rows."""
    backends, embedders = (list(dict.fromkeys(rows[name])) for name in ("backend", "embedder"))
    figure = new_figure(COLUMN if len(embedders) == 1 else PAGE, 0.9 + 1.8 * len(backends))
    grid = figure.subplots(len(backends), len(embedders), squeeze=False)
    return figure, [
        (grid[i, j], f"{backend}, {embedder}", rows[(rows["backend"] == backend) & (rows["embedder"] == embedder)])
        for i, backend in enumerate(backends)
        for j, embedder in enumerate(embedders)
    ]


def from_zero(axes: Axes) -> None:
    """Both axes from 0, which is best, with a little room above."""
    for set_limits, (_, high) in ((axes.set_xlim, axes.get_xlim()), (axes.set_ylim, axes.get_ylim())):
        set_limits(0, high * 1.05)


def legend_below(figure: Figure) -> None:
    """One legend below all panels, every label once."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=4)


def save(figure: Figure, path: Path) -> list[Path]:
    """Write PNG and PDF, the same bytes whenever they are drawn again.  Raises InputError where it cannot."""
    metadata: dict[str, dict[str, None]] = {
        "png": {"Software": None},
        "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    }
    paths = []
    for suffix, fields in metadata.items():
        target = path.with_name(f"{path.name}.{suffix}")
        with atomic_path(target) as temporary:
            figure.savefig(temporary, metadata=fields)
        figure.set_layout_engine(None)  # arranged by now, and that takes longer than the drawing
        paths.append(target)
    return paths
