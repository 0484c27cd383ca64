"""The page: a study as one HTML file that needs nothing else, for readers who do not know this program.

Each section says what its numbers mean and what is better; what failed and what was excluded comes first.
"""

from __future__ import annotations

import base64
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import __version__
from .measurements import ORIGINAL
from .stages import Failure
from .statistics import LIMITS
from .study_config import Study
from .tables import CAPTIONS, number

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

Figure = tuple[str, str, Path]
"""Title, caption, PNG."""


class Section(NamedTuple):
    """A part of the page: what its numbers mean, and which tables and figures (beginnings of names) are in it."""

    title: str
    text: str
    tables: tuple[str, ...]
    figures: tuple[str, ...]


SEEDS = (
    "The tools that draw several faces, seed by seed: each must hide its owner, not only the first. "
    "Columns as in the table of re-identification."
)
SECTIONS = (
    Section(
        "Attackers",
        "Who finds the owner of an output among originals? AUC 0.5 is chance: an attacker who is given the output "
        "and two originals, the owner's and somebody else's, picks the owner half of the time; at 1 always. An "
        "attacker may use a score in either direction (<em>found</em>): a face that is always least like its "
        "owner's gives the owner away as well. Intervals: bootstrap over people. A tool is as good as its worst "
        "attacker says, and a better attacker may exist.",
        ("table_attackers",),
        (),
    ),
    Section(
        "Made or real",
        "Can a classifier separate outputs from originals, in slices and in renders? AUC 0.5 is best. Where it "
        "can, any program can find out which part of a scan was made.",
        ("table_made_or_real", "table_headline"),
        (),
    ),
    Section(
        "Exclusions",
        "Was the brain left alone (C1), is the face gone (C2), and can the original be segmented at all (C3)? "
        "Zero everywhere is best. C1 and C2 are measured voxel by voxel against the original: C2 is the share of "
        "the visible face, from below the brow to the chin, that came out unchanged. Volumes and overlaps of "
        "scans "
        "that meet C3 are left out of the tables on brain volumes; nothing else is left out.",
        ("table_2_exclusions", "table_2_excluded_scans"),
        (),
    ),
    Section(
        "Faces, before and after",
        "The skin of each scan drawn from the front and from the side. Look for a face in its place, without "
        "hole or "
        "seam, that is not the person's, and for a different one in every row: no number replaces this look.",
        (),
        ("figure_3_",),
    ),
    Section(
        "Re-identification",
        "A face recogniser compares the picture of each output with those of all originals. Best is a face "
        "that is "
        "as far from its own original as from anybody else's: AUC 0.5, ranks at chance, nobody below the "
        "threshold. "
        "The row <em>original</em> is the positive control: the original, scanned again in simulation (pose, "
        "noise, "
        "bias field, voxel size, skin threshold), which ought to be recognised. Simulated re-scans also "
        "stand for the correct matches, since there is one scan a person; real repeats would lie further apart.",
        ("table_5_", "table_seeds", "table_embedders"),
        ("figure_identification_", "figure_10_"),
    ),
    Section(
        "Twins and training faces",
        "A tool that gives everybody one face hides people but makes the data unnatural, and a generator must not "
        "hand out a face it was trained on. Best is a distance between two people's outputs like that between two "
        "originals, and a distance to the nearest training face like that of the originals themselves.",
        ("table_diversity",),
        (),
    ),
    Section(
        "Realism",
        "Does the output look like a scan of a person? Best is a face found as often, and as surely, as in the "
        "originals, a border of the face region as smooth as skin elsewhere (1), and a Frechet distance near 0. "
        "The Frechet distance depends on the number of pictures: compare it within this page alone.",
        ("table_realism",),
        (),
    ),
    Section(
        "Brain volumes",
        "The same volumetry on original and output: the brain is the same, so every difference is an error "
        "that the "
        "tool brings into a study. Small differences, small coefficients of repeatability and a Dice of 1 are "
        "best. "
        "Two kinds of volumetry do not answer alike, so a conclusion from one does not hold for the other.",
        ("table_3_", "table_4_", "table_7_"),
        ("figure_4_", "figure_11_"),
    ),
    Section(
        "Balance of risk and repeatability",
        "Both errors at once: how well people are recognised against how much the volumes move. Nearest to the "
        "lower left corner is best; emptying more hides more and disturbs more.",
        ("table_tradeoff", "table_tuning"),
        ("figure_5_", "figure_8_"),
    ),
    Section(
        "Processing time",
        "Seconds from file to file for one scan, shorter is better: one thread for each scan, as many scans "
        "at once "
        "as stated below, models already in memory; outside programs are started anew for each scan.",
        ("table_6_",),
        ("figure_time",),
    ),
)


def html(
    study: Study,
    tables: Mapping[str, pd.DataFrame],
    texts: Mapping[str, pd.DataFrame],
    figures: Sequence[Figure],
    failures: Sequence[Failure],
    slices: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]] | None = None,
) -> str:
    """The whole page. tables, texts: the tables with numbers, and as texts.  figures: what was drawn.  slices:
    scan -> tool -> plane -> original and output side by side, uint8 (H, 2 W)."""
    title = f"De-identification study: {study.path.stem}"
    known = [
        section for section in SECTIONS
        if any(name.startswith(section.tables) for name in texts if section.tables)
        or any(path.name.startswith(section.figures) for *_, path in figures if section.figures)
    ]  # fmt: skip
    shown = ["Slices, before and after"] if slices else []
    names = ["At a glance", "Failures", *shown, *(section.title for section in known), "How this was made"]
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in names)
    count = f"{len(study.originals)} scans, {len(study.tables)} tools, {datetime.now(UTC):%d %B %Y}"
    parts = [
        f"<header><h1>{escape(title)}</h1><p>{count}. What tools that take the face out of head MRI do to "
        "privacy, to the brain and to the picture, measured after Molchanova et al. 2023 "
        '(<a href="https://arxiv.org/abs/2305.16922">arXiv 2305.16922</a>).</p>'
        f"<nav>{links}</nav></header>",
        _section(
            "At a glance",
            "One row for each tool. Averages hide single people, and not every attack was tried: read on.",
            _headline(tables, texts) + _verdict(failures),
        ),
        _section("Failures", *_failures(failures)),
        *([_slices(shown[0], slices)] if slices else []),
        *(_filled(section, texts, figures) for section in known),
        _section(
            "How this was made", "Everything that is needed to repeat it, besides the scans.", _settings(study)
        ),
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{CSS}</style></head>\n<body>{''.join(parts)}</body></html>\n"
    )


# --- parts ------------------------------------------------------------------------------------------------


def _section(title: str, text: str, body: str) -> str:
    return f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2><p>{text}</p>{body}</section>\n'


def _filled(section: Section, texts: Mapping[str, pd.DataFrame], figures: Sequence[Figure]) -> str:
    body = ""
    for beginning in section.tables:
        for name, text in texts.items():
            if name.startswith(beginning):
                body += _table(text, CAPTIONS.get(name, SEEDS if name == "table_seeds" else ""), name)
    for beginning in section.figures:
        body += "".join(_figure(*figure) for figure in figures if figure[2].name.startswith(beginning))
    return _section(section.title, section.text, body)


def _table(table: pd.DataFrame, caption: str, name: str = "") -> str:
    marks = [' class="name"' if column in NAMES else "" for column in table.columns]

    def line(tag: str, row: Iterable[Any]) -> str:
        cells = (f"<{tag}{mark}>{escape(str(cell))}</{tag}>" for cell, mark in zip(row, marks, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    head, rows = line("th", table.columns), "".join(line("td", row) for row in table.values.tolist())
    file = f' <a class="file" href="tables/{name}.csv">{name}.csv</a>' if name else ""
    return (
        f'<figure class="table"><figcaption>{escape(caption)}{file}</figcaption>'
        f"<div><table><thead>{head}</thead><tbody>{rows}</tbody></table></div></figure>"
    )


def _figure(title: str, caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(title)}">'
        f"<figcaption><strong>{escape(title)}.</strong> {escape(caption)}</figcaption></figure>"
    )


def _failures(failures: Sequence[Failure]) -> tuple[str, str]:
    import pandas as pd

    if not failures:
        return "Every tool ran on every scan, and every measurement succeeded.", ""
    text = (
        f"{len(failures)} steps failed, for the reasons below. What a step was to measure is missing in all "
        "tables (their column <em>scans</em> counts what is there); nothing was put in its place."
    )
    rows = pd.DataFrame(list(failures), columns=["scan", "tool", "step", "reason"])
    return text, _table(rows, "What failed, and why.")


def _verdict(failures: Sequence[Failure]) -> str:
    if not failures:
        return ""
    tools = ", ".join(sorted({escape(failure[1]) for failure in failures}))
    return f'<p class="note">Not everything succeeded: see <a href="#failures">Failures</a> ({tools}).</p>'


NAMES = {
    *("tool", "embedder", "backend", "region", "device", "scan", "step", "reason", "what", "value", "settings"),
    *("worst attacker", "attacker", "judged", "where", "by mask"),
}
"""The columns that hold words."""


class Column(NamedTuple):
    """One column of the first table: from which table and column it comes."""

    head: str
    table: str
    column: str


def _headline(tables: Mapping[str, pd.DataFrame], texts: Mapping[str, pd.DataFrame]) -> str:
    """The headline table and a sentence for each tool; without attackers, the means of what was measured."""
    if "table_headline" not in texts:
        return _glance(tables)
    rows = tables["table_headline"].to_dict("records")
    said = "".join(f"<li>{escape(finding(row))}</li>" for row in rows if _attacked(row))
    text = texts["table_headline"]
    table = _table(text[[name for name in HEADLINE if name in text]], GLANCED, "table_headline")
    return table + (f"<ul>{said}</ul>" if said else "")


HEADLINE = (
    *("tool", "worst attacker", "AUC", "made or real slices", "made or real renders", "brain changed (ml)"),
    *("dice", "nCR (%)", "seconds"),
)
"""The columns of the headline that stand at the top; all of them stand further below."""
GLANCED = (
    "Worst attacker: of all that were tried, the one that finds most owners, and its AUC (0.5: chance; 1: the "
    "owner is always found). Made or real: AUC of a classifier that tells outputs from originals (0.5: cannot). "
    "Brain changed: in masks that none of the tools has made. In brackets: 95 % intervals, bootstrap over people."
)
FEW = 12
"""With fewer people than this the page says that no conclusion is possible."""


def _attacked(row: Mapping[Any, Any]) -> bool:
    return isinstance(row.get("worst_attacker"), str)


def finding(row: Mapping[Any, Any]) -> str:
    """What the worst attacker finds, in one sentence. row: of table_headline."""
    few = " So few people allow no conclusion." if row["people"] < FEW else ""
    interval = f"AUC {row['auc']:.2f}, {row['auc_low']:.2f} to {row['auc_high']:.2f}; chance is 0.50"
    return (
        f"{row['tool']}: the attacker “{row['worst_attacker']}” tells the owner from one other person in "
        f"{100 * row['auc']:.0f} of 100 cases ({interval}), and puts the owner first in "
        f"{row['rank_1_percent']:.0f} % of galleries of {row['gallery']:.0f} ({row['people']:.0f} people).{few}"
    )


def _slices(title: str, slices: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]) -> str:
    """All slices, one fold for each scan, one pixel a voxel."""
    text = (
        "Left the original, right the output, in the original's grey window, one pixel of the picture a voxel. "
        "Look for tissue: skin, fat, muscle, eyes, the nasal cavity, as sharp and as noisy as what was kept; for "
        "edges where the new part begins; and for what of the old face is left."
    )
    body = ""
    for scan, tools in slices.items():
        inner = ""
        for tool, planes in tools.items():
            pictures = "".join(_voxels(pair, f"{scan}, {tool}, {name}") for name, pair in planes.items())
            inner += f"<figure><figcaption>{escape(tool)}</figcaption>{pictures}</figure>"
        state = "" if body else " open"
        body += f"<details{state}><summary>{escape(scan)}</summary>{inner}</details>"
    return _section(title, text, body)


def _voxels(picture: np.ndarray, what: str) -> str:
    source = f"data:image/png;base64,{_png(picture)}"
    return f'<img class="voxels" src="{source}" alt="{escape(what)}">'


def _png(picture: np.ndarray) -> str:
    """Base64 of a PNG of grey values, uint8 (H, W)."""
    from io import BytesIO

    from PIL import Image

    file = BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


GLANCE = (
    Column("excluded scans ↓", "table_2_exclusions", "excluded"),
    Column("identifiable (%) ↓", "table_5_identifiability", "identifiable_percent"),
    Column("rank-1 (%) ↓", "table_5_identifiability", "rank_1_percent"),
    Column("AUC → 0.5", "table_5_identifiability", "auc"),
    Column("two people apart ↑", "table_diversity", "pair_distance"),
    Column("faces found (%) ↑", "table_realism", "detected_percent"),
    Column("seam → 1", "table_realism", "seam"),
    Column("normalised CR (%) ↓", "table_4_repeatability", "cr_percent"),
    Column("Dice ↑", "table_7_dice", "dice"),
    Column("seconds ↓", "table_6_processing_time", "seconds"),
)
"""What the first table shows; where a tool has several rows (embedders, regions), their mean."""


def _glance(tables: Mapping[str, pd.DataFrame]) -> str:
    import pandas as pd

    columns = {}
    for column in GLANCE:
        table = tables.get(column.table)
        if table is None:
            continue
        split = next((name for name in ("backend", "embedder") if name in table), None)
        parts = list(table.groupby(split, sort=False)) if split else [("", table)]
        for part, rows in parts:
            head = f"{column.head} {part}" if len(parts) > 1 else column.head
            columns[head] = rows.groupby("tool", sort=False)[column.column].mean()
    if not columns:
        return ""
    tools = list(dict.fromkeys(tool for column in columns.values() for tool in column.index))
    tools.sort(key=lambda tool: tool != ORIGINAL)
    rows = pd.DataFrame(columns).reindex(tools).map(number)
    rows.insert(0, "tool", rows.index)
    caption = "Means over scans; CR and Dice also over regions. Of the original: its simulated re-scan."
    return _table(rows, caption)


def _settings(study: Study) -> str:
    import pandas as pd

    facts: dict[str, Any] = {
        "program": f"RefaceCGAN {__version__}, refacecgan evaluate {study.path.name}",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
        "Python": platform.python_version(),
        "scans at once": study.workers,
        "originals": ", ".join(study.originals),
        "brain masks": "given" if study.masks else "of the anatomy network",
        "gallery": f"{len(study.gallery)} originals" if study.detector else "",
        "attackers learn from": f"{len(study.pairs)} further people" if study.pairs else "",
        "training faces": len(study.training) or "",
        "face models": ", ".join(study.embedders),
        "false match rate": f"{study.false_match_rate:g}" if study.detector else "",
        "volumetry": ", ".join([*(str(table["name"]) for table in study.backends), *study.volumes]),
        "scans with volumetry": ", ".join(sorted(study.volumetry)) if study.backends else "",
        "limits": ", ".join(f"{name} {value:g}" for name, value in (LIMITS | study.limits).items()),
    }
    known = [(name, str(fact)) for name, fact in facts.items() if fact != ""]
    rows = pd.DataFrame(known, columns=["what", "value"])
    tools = pd.DataFrame(
        [(tool.name, _listed(tool.settings), ", ".join(map(str, tool.seeds))) for tool in study.tools],
        columns=["tool", "settings", "seeds"],
    )
    which = "The tools; of several seeds the first is measured throughout."
    return _table(rows, "The study.") + _table(tools, which)


def _listed(settings: Mapping[str, Any]) -> str:
    """Settings in one line; of hashes the beginning, of paths the name."""

    def short(value: Any) -> str:
        if isinstance(value, dict):
            return "(" + _listed(value) + ")"
        text = str(value)
        return text[:12] if len(text) == 64 else Path(text).name if os.sep in text else text

    return ", ".join(f"{name} {short(value)}" for name, value in settings.items() if value not in (None, ""))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _anchor(title: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())


CSS = """
:root { color-scheme: light dark;
  --ink: #1c2126; --paper: #fff; --soft: #f3f5f7; --line: #d6dbe0; --link: #0a5ea8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe4e9; --paper: #15191d; --soft: #1f252b; --line: #38424c; --link: #79b8f2; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 84rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 0 0 .5rem; }
p { max-width: 48rem; margin: 0 0 1rem; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: .6rem 0; font-size: .92rem; }
section { border-top: 1px solid var(--line); padding: 1.5rem 0; }
figure { margin: 0 0 1.75rem; }
img.voxels { display: inline-block; image-rendering: pixelated; border-radius: 0; margin: 0 .5rem .4rem 0;
  min-width: 22rem; max-width: none; }
details { margin-bottom: .6rem; overflow-x: auto; }
summary { cursor: pointer; font-weight: 600; }
figcaption { font-size: .88rem; max-width: 56rem; margin-bottom: .4rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; margin-bottom: .4rem; }
.table div { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .5rem; text-align: right; white-space: nowrap; }
th { background: var(--soft); vertical-align: bottom; white-space: normal; font-weight: 600; }
.name { text-align: left; }
td:first-child { font-weight: 600; }
tbody tr + tr td { border-top: 1px solid var(--line); }
.file { white-space: nowrap; }
.note { border-left: 4px solid #d08a00; background: var(--soft); padding: .5rem .8rem; }
#failures td, #how-this-was-made td { white-space: normal; overflow-wrap: anywhere; }
"""
