"""Figures: what the tables of a study cannot show, after Molchanova et al. 2023 (arXiv 2305.16922).

Each takes rows that `tidy` and `statistics` give and a path without suffix, and writes a PNG (150 dpi) and a PDF;
it returns their paths, or none if there is nothing to draw. A tool has one colour and one marker in all of them
(`styles`, see `canvas.styles_of`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from .figure_style import (
    COLOURS,
    COLUMN,
    GREY,
    INK,
    MARKERS,
    PAGE,
    PALE,
    Style,
    from_zero,
    legend_below,
    new_figure,
    panels_of,
    save,
    styled,
    styles_of,
)
from .measurements import ORIGINAL, cells, known, matches, mean_sd, regional, rows_of, tools_of, volume_pairs
from .statistics import tables as tables_of
from .tables import number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

TISSUES = "TIV", "CSF", "GM", "WM"  # a Bland-Altman figure of their own
REGIONS_A_PAGE = 6
SCANS_A_PAGE = 8
CAPTIONS = {
    "renders": "The skin of every scan before and after, for the eye: was the face removed (C2), is there a new "
    "one, and is it another?",
    "bland_altman": "Difference of the output's volume from the original's, a point per scan. Line: bias; dashed: "
    "limits of agreement, bias ± 1.96 SD, in numbers above. Nearer to 0 and closer together is better.",
    "tradeoff": "Normalised coefficient of repeatability (mean over regions) against the mean inverse distance "
    "between the faces of original and output. Lower left is best.",
    "tuning": "Repeatability and risk by training epoch and dropout. Lower is better in both.",
    "matches": "Distances between originals and simulated re-scans of the same person, and between originals of "
    "two people; there is one scan a person. The less they overlap, the better the embedder.",
    "dice": "Overlap of the segmentations of output and original: median, quartiles, and every scan. 1 is best.",
    "identification": "Can the own original be found from the output's face? Distance between the two (dashed: "
    "threshold of a match), share of the other originals that are further away than the own (AUC), and how often "
    "the own is the nearest, or one of the five nearest, of all originals; dotted: chance. Lines: 95 % intervals, "
    "bootstrap over scans.",
    "time": "Seconds per scan: the mean, and every scan. Shorter is better.",
}

Drawn = tuple[str, str, Path]


# --- volumetry --------------------------------------------------------------------------------------------


@styled
def bland_altman(pairs: pd.DataFrame, path: Path, styles: Mapping[str, Style] | None = None) -> list[Path]:
    """Bland-Altman plots (Figures 4, 13 to 16): a row per tool, a column per region, one scale in each column.

    pairs: what `tidy.volume_pairs` gives, of one backend and a few regions.
    """
    pairs = pairs.dropna(subset=["difference_ml"])
    if pairs.empty:
        return []
    tools, regions = tools_of(pairs), list(dict.fromkeys(pairs["region"]))
    styles = styles or styles_of(tools)
    figure = new_figure(PAGE, 0.75 + 0.92 * len(tools))
    grid = figure.subplots(len(tools), len(regions), sharex="col", sharey="col", squeeze=False)
    for (region, tool), cell in cells(pairs, ("region",), tools):
        axes = grid[tools.index(tool), regions.index(region)]
        _agreement(axes, cell["original_ml"].to_numpy(), cell["difference_ml"].to_numpy(), styles[tool])
    for axes, region in zip(grid[0], regions, strict=True):
        axes.set_title(region, pad=9)
    for axes, tool in zip(grid[:, 0], tools, strict=True):
        axes.set_ylabel(fill(tool, 16), color=styles[tool].colour, fontweight="bold", fontsize=6.5)
    figure.supxlabel("mean of original and output (ml)", fontsize=7)
    figure.supylabel("output − original (ml)", fontsize=7)
    figure.suptitle("Volumes against the original's: nearer to 0, and closer together, is better")
    return save(figure, path)


def _agreement(axes: Axes, original: np.ndarray, difference: np.ndarray, style: Style) -> None:
    """One panel: points, bias and limits of agreement (bias ± 1.96 SD)."""
    axes.axhline(0, color=PALE, lw=0.6, zorder=0)
    axes.plot(original + difference / 2, difference, style.marker, color=style.colour, ms=3, mec="white", mew=0.3)
    axes.margins(x=0.1, y=0.12)
    axes.locator_params(nbins=3, axis="x")
    axes.locator_params(nbins=4, axis="y")
    bias, spread = mean_sd(difference)
    for limit, line in ((bias, "-"), (bias - 1.96 * spread, "--"), (bias + 1.96 * spread, "--")):
        axes.axhline(limit, color=style.colour, lw=0.9, ls=line)
    numbers = f"{number(bias, 2)} ± {number(1.96 * spread, 2)}"
    axes.text(1, 1.01, numbers, transform=axes.transAxes, ha="right", va="bottom", fontsize=5.5, color=GREY)


@styled
def dice_distributions(dice: pd.DataFrame, path: Path, styles: Mapping[str, Style] | None = None) -> list[Path]:
    """Dice overlaps of every scan (Figures 11, 12): a panel per region, a box and its points per tool.

    dice: scan, tool, region, value, of one backend.
    """
    dice = dice.dropna(subset=["value"])
    if dice.empty:
        return []
    tools, regions = tools_of(dice), list(dict.fromkeys(dice["region"]))
    styles = styles or styles_of(tools)
    across = min(len(regions), 5)
    down = -(-len(regions) // across)
    figure = new_figure(PAGE, 0.7 + down * (0.35 + 0.17 * len(tools)))
    grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(regions) :]:
        axes.set_axis_off()
    for axes, region in zip(grid.flat, regions, strict=False):
        own = dice[dice["region"] == region]
        _strips(axes, [own.loc[own["tool"] == tool, "value"].to_numpy() for tool in tools], tools, styles)
        axes.set_title(region)
        axes.locator_params(nbins=4, axis="x")
    figure.supxlabel("Dice", fontsize=7)
    figure.suptitle("Dice overlap with the original's segmentation: 1 is best")
    return save(figure, path)


def _strips(axes: Axes, groups: Sequence[np.ndarray], tools: Sequence[str], styles: Mapping[str, Style]) -> None:
    """A box with its points for each tool, the first on top."""
    for place, (group, tool) in enumerate(zip(groups, tools, strict=True)):
        style = styles[tool]
        offsets = 0.22 * (np.arange(group.size) % 5 - 2) / 2
        axes.plot(group, place + offsets, style.marker, color=style.colour, ms=2.2, mec="none", alpha=0.55)
        if group.size > 1:
            line = {"color": style.colour, "lw": 0.9}
            axes.boxplot(
                [group], positions=[place], widths=0.6, orientation="horizontal", showfliers=False,
                boxprops=line, whiskerprops=line, capprops=line, medianprops={**line, "lw": 2}, manage_ticks=False,
            )  # fmt: skip
    _name_rows(axes, tools)


def _name_rows(axes: Axes, tools: Sequence[str]) -> None:
    axes.set_yticks(range(len(tools)), tools)
    axes.set_ylim(len(tools) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


# --- re-identification ------------------------------------------------------------------------------------


@styled
def match_histograms(
    distances: Mapping[str, tuple[np.ndarray, np.ndarray]],
    path: Path,
    choice: pd.DataFrame | None = None,
) -> list[Path]:
    """Histograms of the distances of correct and of incorrect matches, a panel per embedder (Figure 10).

    distances: what `tidy.matches` gives.  choice: what `statistics.tables` calls table_embedders, for the
    threshold, H and the overlap.
    """
    distances = {name: pair for name, pair in distances.items() if any(group.size for group in pair)}
    if not distances:
        return []
    figure = new_figure(COLUMN if len(distances) == 1 else PAGE, 0.5 + 1.9 * -(-len(distances) // 2))
    across = min(len(distances), 2)
    grid = figure.subplots(-(-len(distances) // across), across, squeeze=False)
    for axes in grid.flat[len(distances) :]:
        axes.set_axis_off()
    for axes, (name, (correct, incorrect)) in zip(grid.flat, distances.items(), strict=False):
        bins = np.histogram_bin_edges(np.concatenate([correct, incorrect]), 20)
        for group, label, look in (
            (incorrect, "two people", {"color": PALE}),
            (correct, "one person, re-scanned", {"color": INK, "alpha": 0.75}),
        ):
            weights = np.full(group.size, 100 / max(group.size, 1))
            axes.hist(group, bins.tolist(), weights=weights, label=f"{label} (n = {group.size})", **look)
        title = name
        if choice is not None:
            row = choice.set_index("embedder").loc[name]
            rate = f"{number(100 * row['false_match_rate'], 2)} % false matches"
            label = f"threshold, {rate}"
            axes.axvline(row["threshold"], ymax=0.66, color=COLOURS[1], lw=1, ls="--", label=label)
            title = f"{name}: H = {number(row['H'])}, overlap {number(100 * row['relative_overlap'], 2)} %"
        axes.set_title(title)
        axes.set_xlabel("cosine distance")
        axes.set_ylabel("pairs (%)")
        axes.legend(loc="upper left")
        axes.margins(y=0.5)
    figure.suptitle("Correct and incorrect matches: the less they overlap, the better the embedder")
    return save(figure, path)


@styled
def identification(
    identity: pd.DataFrame,
    distances: pd.DataFrame,
    path: Path,
    styles: Mapping[str, Style] | None = None,
) -> list[Path]:
    """Distance to the own original, verification AUC, and rank-1 and rank-5 rates with their intervals, per tool.

    identity: what `statistics.identifiability` gives, of one embedder.  distances: own_distance of the same
    embedder: scan, tool, value.
    """
    if identity["scans"].sum() == 0:
        return []
    tools = list(identity["tool"])
    styles = styles or styles_of(tools)
    figure = new_figure(PAGE, 0.95 + 0.24 * len(tools))
    near, auc, first, fifth = figure.subplots(1, 4, sharey=True, width_ratios=(1.7, 1, 1, 1))
    _strips(near, [known(distances.loc[distances["tool"] == tool, "value"]) for tool in tools], tools, styles)
    near.axvline(identity["threshold"].iloc[0], color=INK, lw=0.8, ls="--")
    near.set_xlim(left=0)
    near.set_yticks(range(len(tools)), [_detected(row) for row in identity.to_dict("records")])
    near.set_title("distance to the own original\n(dashed: match)")
    for axes, column, chance, title in (
        (auc, "auc", 0.5, "AUC"),
        (first, "rank_1_percent", 100 / identity["scans"].max(), "rank-1 (%)"),
        (fifth, "rank_5_percent", min(500 / identity["scans"].max(), 100), "rank-5 (%)"),
    ):
        axes.axvline(chance, color=GREY, lw=0.8, ls=":")
        for place, row in enumerate(identity.to_dict("records")):
            style = styles[row["tool"]]
            axes.plot([row[f"{column}_low"], row[f"{column}_high"]], [place, place], color=style.colour, lw=1.2)
            axes.plot(row[column], place, style.marker, color=style.colour, ms=4)
        axes.set_title(f"{title}\n(dotted: chance)")
        axes.set_xlim((0, 1.03) if column == "auc" else (-3, 103))
        axes.tick_params(axis="y", length=0)
    figure.suptitle("Re-identification: a great distance, and all else at chance, is best")
    return save(figure, path)


def _detected(row: Mapping[Any, Any]) -> str:
    return f"{row['tool']}\n{row['scans'] - row['not_detected']} of {row['scans']} detected"


# --- balance, tuning, time, renders -----------------------------------------------------------------------


@styled
def tradeoff(balance: pd.DataFrame, path: Path, styles: Mapping[str, Style] | None = None) -> list[Path]:
    """Re-identification risk against repeatability (Figure 5), a panel per backend and embedder.

    balance: what `statistics.tradeoff` gives. A copy of the original, at infinite risk, is left out.
    """
    shown = balance.replace([np.inf, -np.inf], np.nan).dropna(subset=["ncr_percent", "mean_inverse_distance"])
    if shown.empty:
        return []
    tools = tools_of(balance)
    styles = styles or styles_of(tools)
    figure, panels = panels_of(shown)
    for axes, title, own in panels:
        for row in own.to_dict("records"):
            colour, marker = styles[row["tool"]]
            axes.plot(
                row["mean_inverse_distance"], row["ncr_percent"], marker, color=colour, ms=6, label=row["tool"],
                mec="white", mew=0.5, clip_on=False, ls="none",
            )  # fmt: skip
        axes.set_title(title)
        axes.set_xlabel("mean inverse distance")
        axes.set_ylabel("normalised CR (%)")
        from_zero(axes)
    legend_below(figure)
    figure.suptitle("Risk against repeatability: lower left is best")
    return save(figure, path)


@styled
def tuning(summary: pd.DataFrame, path: Path) -> list[Path]:
    """Repeatability and risk by training epoch, a line per dropout (Figure 8), and one against the other.

    summary: what `statistics.tuning` gives, of one backend and embedder.
    """
    shown = summary.replace([np.inf, -np.inf], np.nan).dropna(subset=["ncr_percent", "mean_inverse_distance"])
    if shown.empty:
        return []
    from matplotlib import colormaps

    figure = new_figure(PAGE, 2.4)
    columns = {"ncr_percent": "normalised CR (%)", "mean_inverse_distance": "mean inverse distance"}
    *by_epoch, balance = figure.subplots(1, 3)
    dropouts = sorted(set(shown["dropout"]))
    for place, dropout in enumerate(dropouts):
        own = shown[shown["dropout"] == dropout].sort_values("epoch")
        look: dict[str, Any] = {
            "color": colormaps["viridis"](0.9 * place / max(len(dropouts) - 1, 1)),
            "marker": MARKERS[place % len(MARKERS)],
            "ms": 4,
            "lw": 1,
        }
        for axes, column in zip(by_epoch, columns, strict=True):
            axes.plot(own["epoch"], own[column], **look)
        balance.plot(
            own["mean_inverse_distance"], own["ncr_percent"], **look | {"lw": 0.5}, label=f"dropout {dropout:g}"
        )
        for row in own.to_dict("records"):
            balance.annotate(
                f"{row['epoch']:g}", (row["mean_inverse_distance"], row["ncr_percent"]), (3, 3),
                textcoords="offset points", fontsize=5, color=GREY,
            )  # fmt: skip
    for axes, name in zip(by_epoch, columns.values(), strict=True):
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.set_xticks(sorted(set(shown["epoch"])))
    balance.set_ylabel(columns["ncr_percent"])
    balance.set_xlabel(columns["mean_inverse_distance"])
    balance.set_title("the two (points: epochs)")
    legend_below(figure)
    figure.suptitle("Epoch and dropout: lower is better in both")
    return save(figure, path)


@styled
def time_bars(times: pd.DataFrame, path: Path, styles: Mapping[str, Style] | None = None) -> list[Path]:
    """Mean seconds per scan with every scan as a point, a bar per tool and device (Table 6).

    times: scan, tool, device, value.
    """
    times = times.dropna(subset=["value"])
    if times.empty:
        return []
    tools = tools_of(times)
    styles = styles or styles_of(tools)
    bars = [
        (", ".join(filter(None, (tool, str(device)))), tool, group["value"].to_numpy())
        for tool in tools
        for device, group in times[times["tool"] == tool].groupby("device", sort=False)
    ]
    figure = new_figure(COLUMN, 0.7 + 0.24 * len(bars))
    axes = figure.subplots()
    for place, (_, tool, seconds) in enumerate(bars):
        axes.barh(place, seconds.mean(), 0.6, color=styles[tool].colour, alpha=0.55)
        axes.plot(seconds, np.full(seconds.size, place), "|", color=styles[tool].colour, ms=5, mew=0.8)
        axes.annotate(
            f"{number(seconds.mean())} s", (seconds.max(), place), (4, 0), textcoords="offset points", va="center",
            fontsize=6,
        )  # fmt: skip
    _name_rows(axes, [name for name, _, _ in bars])
    axes.set_xlim(0, 1.16 * times["value"].max())
    axes.set_xlabel("seconds per scan (bar: mean)")
    figure.suptitle("Processing time: shorter is better")
    return save(figure, path)


@styled
def render_sheet(pictures: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> list[Path]:
    """The faces before and after, for the eye (Figure 3): a row per scan, a column per tool, several pages.

    pictures: by scan and by tool (the original too, in the order of the columns), uint8 (H, W, 3).
    """
    if not any(pictures.values()):
        return []
    tools = list(dict.fromkeys(tool for row in pictures.values() for tool in row))
    height, width = next(picture.shape[:2] for row in pictures.values() for picture in row.values())
    scans = list(pictures)
    pages = [scans[start : start + SCANS_A_PAGE] for start in range(0, len(scans), SCANS_A_PAGE)]
    side = min((PAGE - 0.5) / len(tools), 1.6)
    written = []
    for place, page in enumerate(pages, 1):
        figure = new_figure(0.5 + side * len(tools), 0.6 + len(page) * side * height / width, pad=0.025)
        grid = figure.subplots(len(page), len(tools), squeeze=False)
        for line, scan in zip(grid, page, strict=True):
            for axes, tool in zip(line, tools, strict=True):
                _picture(axes, pictures[scan].get(tool))
            line[0].set_ylabel(scan, fontsize=6)
        for axes, tool in zip(grid[0], tools, strict=True):
            axes.set_title(tool)
        figure.suptitle("Renders: best is a face, in its place, and another than the original's")
        written += save(figure, path if len(pages) == 1 else path.with_name(f"{path.name}_{place}"))
    return written


def _picture(axes: Axes, picture: np.ndarray | None) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if picture is None:
        axes.text(0.5, 0.5, "missing", ha="center", va="center", transform=axes.transAxes, color=GREY)
    else:
        axes.imshow(picture, interpolation="lanczos")


# --- all of it --------------------------------------------------------------------------------------------


def draw_all(
    table: pd.DataFrame,
    folder: Path,
    tables: Mapping[str, pd.DataFrame] | None = None,
    renders: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> list[Drawn]:
    """Draw every figure the study has the numbers for into a folder that exists.

    tables: what `statistics.tables` gave of the same table (else it is called).  renders: see `render_sheet`.
    Returns (title, caption, path of the PNG) in the order of the paper.
    """
    tables = tables_of(table) if tables is None else tables
    styles = {ORIGINAL: Style(INK, "X")} | styles_of(tools_of(table))
    drawn: list[Drawn] = []

    def place(name: str) -> Path:
        return folder / re.sub(r"[^\w-]+", "_", name)

    def add(title: str, caption: str, paths: Sequence[Path]) -> None:
        drawn.extend((title, caption, path) for path in paths if path.suffix == ".png")

    add("Renders", CAPTIONS["renders"], render_sheet(renders or {}, place("figure_3_renders")))
    for name, pairs in _pages(volume_pairs(table)):
        paths = bland_altman(pairs, place(f"figure_4_bland_altman_{name}"), styles)
        add(f"Bland-Altman, {name}", CAPTIONS["bland_altman"], paths)
    if "table_tradeoff" in tables:
        paths = tradeoff(tables["table_tradeoff"], place("figure_5_tradeoff"), styles)
        add("Trade-off", CAPTIONS["tradeoff"], paths)
    for name, summary in _pieces(tables, "table_tuning", "backend", "embedder"):
        add(f"Tuning, {name}", CAPTIONS["tuning"], tuning(summary, place(f"figure_8_tuning_{name}")))
    paths = match_histograms(matches(table), place("figure_10_matches"), tables.get("table_embedders"))
    add("Matches", CAPTIONS["matches"], paths)
    for backend, dice in regional(table, "dice").groupby("backend", sort=False):
        paths = dice_distributions(dice, place(f"figure_11_dice_{backend}"), styles)
        add(f"Dice, {backend}", CAPTIONS["dice"], paths)
    distances = rows_of(table, "own_distance", "embedder")
    for name, identity in _pieces(tables, "table_5_identifiability", "embedder"):
        own = distances[distances["embedder"] == name]
        paths = identification(identity, own, place(f"figure_identification_{name}"), styles)
        add(f"Re-identification, {name}", CAPTIONS["identification"], paths)
    times = rows_of(table, "time_s", "device")
    add("Processing time", CAPTIONS["time"], time_bars(times, place("figure_time"), styles))
    return drawn


def _pieces(tables: Mapping[str, pd.DataFrame], name: str, *keys: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """A table in pieces, each named by its keys; none where the table is missing."""
    if name in tables:
        for names, piece in tables[name].groupby(list(keys), sort=False):
            yield ", ".join(map(str, names)), piece


def _pages(pairs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The pairs of one backend and a few regions each: the tissues, then the others."""
    for backend, own in pairs.groupby("backend", sort=False):
        regions = list(dict.fromkeys(own["region"]))
        tissues = [region for region in regions if region in TISSUES]
        others = [region for region in regions if region not in TISSUES]
        pages = [tissues, *(others[i : i + REGIONS_A_PAGE] for i in range(0, len(others), REGIONS_A_PAGE))]
        for place, page in enumerate(filter(None, pages), 1):
            yield f"{backend}, {place}", own[own["region"].isin(page)]
