"""The tables for people: what each shows, and every cell as a short text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

SIGNIFICANT = 0.05  # after the correction for several regions
NOTHING = "–"
WORDS = {"percent": "(%)", "ml": "(ml)", "auc": "AUC", "cr": "CR", "ncr": "nCR"}

CAPTIONS = {
    "table_headline": "One row per tool. Worst attacker: of all that were tried, the one that finds most owners, "
    "and its AUC (0.5: chance; 1: the owner is always found). Made or real: AUC of a classifier that tells "
    "outputs from originals (0.5: it cannot). Fine texture and local contrast: output over original (1 "
    "is best). Brain changed: by the named mask, which none of the tools has made. nCR and Dice: mean "
    "over regions. In brackets: 95 % intervals by bootstrap over people.",
    "table_attackers": "Each attacker against each tool. AUC: share of other people whose original scores lower "
    "than the owner's, 0.5 is chance; found: the same in the direction that finds more, as an attacker uses "
    "either. Standard: a face recogniser. Informed: knows this program, and compares the skins. "
    "Learned: a ridge regression from outputs to originals of other people, in cross-validation over "
    "people.",
    "table_made_or_real": "AUC of a classifier that has seen other people's originals and outputs and tells made "
    "from real, in cross-validation over people; 0.5 is best. Slices: a random forest on patches of 16 mm of the "
    "tissue that was changed. Renders: a linear classifier on embeddings.",
    "table_2_exclusions": "How many scans meet an exclusion criterion: C1 brain voxels changed, C2 face not "
    "removed, C3 segmentation of the original failed (in any backend). Unmeasured: C1 or C2 is not known.",
    "table_2_excluded_scans": "The scans behind these counts.",
    "table_3_volume_differences": "Absolute difference to the original's volume in ml, mean ± SD over scans; "
    "smaller is better. * p < 0.05, paired Wilcoxon test of the volumes, Benjamini-Hochberg across regions. "
    "In square brackets: the number of scans where it is not that of the others.",
    "table_4_repeatability": "Coefficient of repeatability in ml, in brackets in % of the original's volume; "
    "smaller is better.",
    "table_5_identifiability": "Cosine distance between the faces of original and output; greater is better. "
    "Identifiable: nearer than the threshold (exact interval). Rank-1, rank-5: the own original is the nearest, "
    "or one of the five nearest, of all originals. AUC: share of other people's originals that are further away "
    "than the own; 0.5 is no better than chance. A face that is not detected counts as not identified, and has "
    "neither distance nor AUC. Intervals of ranks and AUC: 95 %, bootstrap over scans; at 0 and 100 % such an "
    "interval shrinks to a point and says nothing.",
    "table_6_processing_time": "Seconds per scan; less is better.",
    "table_7_dice": "Dice overlap with the original's segmentation, mean ± SD over scans; 1 is best.",
    "table_embedders": "How well each embedder tells people apart: correct matches are originals against "
    "simulated re-scans of their own (there is one scan a person), incorrect matches originals of two people. "
    "Kruskal-Wallis H: greater is better; relative overlap: smaller is better. The threshold has the stated "
    "rates of false matches and of false non-matches.",
    "table_realism": "Share of pictures in which a face is detected, and its score (best as in the originals); "
    "gradient across the border of the face region against elsewhere on the skin (1 is best); Frechet distance "
    "to the originals' faces (0 is best).",
    "table_diversity": "Distance between the outputs of two people (best as between originals; near 0, everyone "
    "gets one face), to the nearest training face (greater is better), and between two seeds on one scan.",
    "table_tradeoff": "Normalised coefficient of repeatability (mean over regions) against mean inverse "
    "distance; smaller is better in both.",
    "table_tuning": "The trade-off by training epoch and dropout; smaller is better in both.",
}
"""What each table of `statistics.tables` shows; after its name, the number it has in the paper."""


def readable(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The same tables as texts, ready for Markdown and HTML: numbers rounded to three digits, deviations and
    intervals beside what they belong to, and the tables of regions with one column per tool."""
    return {
        name: _by_tool(table, REGIONAL[name]) if name in REGIONAL else _folded(table)
        for name, table in tables.items()
    }


def number(value: Any, digits: int = 3) -> str:
    """A cell as text: a number of significant digits, never a power of ten; a dash for a missing value."""
    import pandas as pd

    if isinstance(value, str):
        return value
    if pd.isna(value):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def with_deviation(mean: float, deviation: float) -> str:
    """ "4.9 ± 4.1": the deviation to two digits, the mean to the same place."""
    if math.isnan(mean):
        return NOTHING
    if not deviation > 0 or math.isinf(deviation):
        return f"{number(mean)} ± {number(deviation)}"
    places = max(0, 1 - math.floor(math.log10(deviation)))
    return f"{mean:.{places}f} ± {deviation:.{places}f}"


def with_interval(value: float, low: float, high: float) -> str:
    """ "73 (47 to 93)", to two digits."""
    value_, low_, high_ = (number(item, digits=2) for item in (value, low, high))
    return value_ if math.isnan(low) else f"{value_} ({low_} to {high_})"


def _folded(table: pd.DataFrame) -> pd.DataFrame:
    """Deviations and intervals in the column they belong to."""
    texts = table.astype(object).map(number)
    for name in table.columns:
        if f"{name}_sd" in texts:
            texts[name] = [*map(with_deviation, table[name], table[f"{name}_sd"])]
        elif f"{name}_low" in texts:
            texts[name] = [*map(with_interval, table[name], table[f"{name}_low"], table[f"{name}_high"])]
    folded = [name for name in table.columns if name.endswith(("_sd", "_low", "_high"))]
    return texts.drop(columns=folded).rename(columns=_heading)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def _heading(name: str) -> str:
    return " ".join(WORDS.get(word, word) for word in name.split("_"))


def _by_tool(table: pd.DataFrame, cell: Callable[[Mapping[str, Any]], str]) -> pd.DataFrame:
    """A row per backend and region, a column per tool; the number of scans where it is not the usual one."""
    usual = table["scans"].max()
    texts = [cell(row) + ("" if row["scans"] == usual else f" [{row['scans']}]") for row in _records(table)]
    keys = ["backend", "region", "tool"]
    wide = table[keys].assign(text=texts).set_index(keys)["text"].unstack("tool", sort=False)
    return wide.fillna(NOTHING).rename_axis(columns=None).reset_index()


def _difference(row: Mapping[str, Any]) -> str:
    star = "*" if row["p_corrected"] < SIGNIFICANT else ""
    return with_deviation(row["absolute_ml"], row["absolute_ml_sd"]) + star


REGIONAL: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "table_3_volume_differences": _difference,
    "table_4_repeatability": lambda row: f"{number(row['cr_ml'])} ({number(row['cr_percent'], 2)} %)",
    "table_7_dice": lambda row: with_deviation(row["dice"], row["dice_sd"]),
}
