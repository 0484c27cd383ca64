"""The tidy table of a study, and how the tables and figures read it.

One row per scan, tool, measure and part: columns scan, tool, measure, part ("" if nothing refines the measure)
and value. The originals are the tool "original". Where a part names two things, a "/" stands between them:
"meshnet/thalamus", "arcface/ixi095".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .volumetry import REGIONS

if TYPE_CHECKING:
    import pandas as pd

ORIGINAL = "original"
LEVEL = 0.95  # of every interval
RESAMPLES = 9999


def tools_of(table: pd.DataFrame) -> list[str]:
    """The tools in the order in which they appear, without the originals."""
    return [str(tool) for tool in dict.fromkeys(table["tool"]) if tool != ORIGINAL]


def rows_of(table: pd.DataFrame, measure: str, *names: str) -> pd.DataFrame:
    """The rows of one measure: scan, tool, value, and the pieces of part under `names` (one or two).

    Raises ValueError where a scan, tool and part have two values.
    """
    rows = table.loc[table["measure"] == measure, ["scan", "tool", "part", "value"]]
    twice = rows.duplicated(["scan", "tool", "part"])
    if twice.any():
        raise ValueError(f"{measure} has two values for {rows[twice].iloc[0, :3].tolist()}")
    parts = rows["part"].fillna("").astype(str)
    pieces = [part.split("/", len(names) - 1) for part in parts]
    rows = rows.drop(columns="part").assign(value=rows["value"].astype(float))
    for position, name in enumerate(names):
        rows[name] = [piece[position] if position < len(piece) else "" for piece in pieces]
    return rows


def regional(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The rows of a measure of regions: scan, tool, value, backend, region; the backends in the order in which
    they appear, the regions in that of the paper."""
    rows = rows_of(table, measure, "backend", "region")
    order = {
        "backend": {name: place for place, name in enumerate(dict.fromkeys(rows["backend"]))},
        "region": {name: place for place, name in enumerate(dict.fromkeys([*REGIONS, *rows["region"]]))},
    }
    return rows.sort_values([*order], key=lambda column: column.map(order[str(column.name)]), kind="stable")


def volume_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """Each output's volume beside its original's: scan, tool, backend, region, output_ml, original_ml, and
    difference_ml = output - original (NaN where the original was not segmented)."""
    rows = regional(table, "volume_ml")
    originals = rows[rows["tool"] == ORIGINAL].drop(columns="tool").rename(columns={"value": "original_ml"})
    outputs = rows[rows["tool"] != ORIGINAL].rename(columns={"value": "output_ml"})
    pairs = outputs.merge(originals, how="left", on=["scan", "backend", "region"])
    return pairs.assign(difference_ml=pairs["output_ml"] - pairs["original_ml"])


def matches(table: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Distances of correct and of incorrect matches, by embedder: every original against its own simulated
    re-scan, and against the originals of others; faces that were not detected are left out."""
    own = rows_of(table, "rescan_distance", "embedder")
    others = rows_of(table, "pair_distance", "embedder", "other")
    embedders = dict.fromkeys([*own["embedder"], *others["embedder"]])
    return {
        name: (known(values(own, ORIGINAL, name)), known(values(others, ORIGINAL, name))) for name in embedders
    }


def values(rows: pd.DataFrame, tool: str, embedder: str) -> np.ndarray:
    """The values of one tool and embedder, NaN included."""
    return rows.loc[(rows["tool"] == tool) & (rows["embedder"] == embedder), "value"].to_numpy(float)


def cells(
    rows: pd.DataFrame, keys: Sequence[str], tools: Sequence[str]
) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """(*keys, tool) and its rows, for all values of the keys that occur and every tool: also one without rows."""
    for names, same in rows.groupby(list(keys), sort=False):
        for tool in tools:
            yield (*map(str, names), tool), same[same["tool"] == tool]


def frame(rows: Sequence[Sequence[Any]], columns: str) -> pd.DataFrame:
    """A table of these rows; columns: their names, with spaces between."""
    import pandas as pd

    return pd.DataFrame(rows, columns=columns.split())


def known(numbers: Any) -> np.ndarray:
    """The numbers that are not NaN."""
    array = np.asarray(numbers, float)
    return array[~np.isnan(array)]


def mean_sd(numbers: Any) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of what is known; NaN of nothing, an SD of one number too."""
    array = known(numbers)
    if not array.size:
        return np.nan, np.nan
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else np.nan


def bootstrapped(numbers: Any) -> tuple[float, float, float]:
    """Mean of what is known with its percentile bootstrap interval (scipy), drawn with a fixed seed; the
    interval is NaN for fewer than two numbers."""
    from scipy import stats

    array = known(numbers)
    if array.size < 2:
        return mean_sd(array)[0], np.nan, np.nan
    result = stats.bootstrap(
        (array,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="percentile", random_state=1
    )
    low, high = result.confidence_interval
    return float(array.mean()), float(low), float(high)


def percent_below(numbers: np.ndarray, threshold: float) -> tuple[float, float, float]:
    """How many of the numbers (NaN: no) lie below, in %, with the exact interval of Clopper and Pearson."""
    from statsmodels.stats.proportion import proportion_confint

    if not len(numbers) or np.isnan(threshold):
        return np.nan, np.nan, np.nan
    count = int(np.sum(numbers < threshold))
    low, high = proportion_confint(count, len(numbers), alpha=1 - LEVEL, method="beta")
    return 100 * count / len(numbers), 100 * float(low), 100 * float(high)
