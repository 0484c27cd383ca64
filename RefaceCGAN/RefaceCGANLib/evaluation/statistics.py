"""Statistics: from the tidy table of a study to the tables of Molchanova et al. 2023 (arXiv 2305.16922).

Every function takes the tidy table (see `tidy`) whole, looks at its own measures and returns a DataFrame with one
row per tool (and backend, region, embedder or device). What is missing is NaN, and a column counts what was
there. Names of columns follow one rule: x_sd is the standard deviation (n - 1) of the x before it, x_low and
x_high bound its 95 % interval. Tests and intervals are scipy's and statsmodels'.

Where the paper's wording was not at hand, the docstring says "Taken here:" and which definition that is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .measurements import (
    ORIGINAL,
    bootstrapped,
    cells,
    frame,
    known,
    matches,
    mean_sd,
    percent_below,
    regional,
    rows_of,
    tools_of,
    values,
    volume_pairs,
)

if TYPE_CHECKING:
    import pandas as pd

FALSE_MATCH_RATE = 0.01
LIMITS = {"brain_voxels_changed": 0.0, "tissue_left_percent": 50.0, "dice_iqr": 3.0}
"""A scan beyond these meets C1, C2 and C3 (section 2.3). C2: tools replace different regions, but where one
missed the face nearly all of it is left; half of it parts the two. C3: Tukey's outer fence."""


class Match(NamedTuple):
    """A threshold on the distance, and the shares of incorrect matches below it and of correct ones not below."""

    threshold: float
    false_match_rate: float
    false_non_match_rate: float


# --- volumetry --------------------------------------------------------------------------------------------


def volume_differences(table: pd.DataFrame) -> pd.DataFrame:
    """Differences to the original's volume (Table 3), per region and tool, over `scans` pairs.

    bias_ml is the mean of output - original, absolute_ml of its size, absolute_percent of its size in % of the
    original's volume.
    """
    rows = []
    for key, cell in cells(volume_pairs(table), ("backend", "region"), tools_of(table)):
        cell = cell.dropna(subset=["difference_ml"])
        size, original = cell["difference_ml"].abs(), cell["original_ml"]
        means = original.mean(), cell["difference_ml"].mean()
        rows.append((*key, len(cell), *means, *mean_sd(size), *mean_sd(100 * size / original)))
    return frame(
        rows, "backend region tool scans original_ml bias_ml absolute_ml absolute_ml_sd absolute_percent "
        "absolute_percent_sd",
    )  # fmt: skip


def wilcoxon(table: pd.DataFrame) -> pd.DataFrame:
    """Paired Wilcoxon signed-rank test per region and tool (Table 3), corrected across a tool's regions.

    Taken here: two-sided, of an original's volume against its output's, so p is small where a tool makes a
    region larger, or smaller. W and p are scipy's, from two pairs on (p is 1 if all are equal); p_corrected is
    Benjamini and Hochberg's over the regions of one tool and backend.
    """
    from scipy import stats
    from statsmodels.stats.multitest import multipletests

    rows = []
    for key, cell in cells(volume_pairs(table), ("backend", "region"), tools_of(table)):
        differences = known(cell["difference_ml"])
        result = np.nan, np.nan
        if differences.size > 1:
            result = stats.wilcoxon(differences) if differences.any() else (0.0, 1.0)
        rows.append((*key, differences.size, *result))
    tests = frame(rows, "backend region tool scans W p").assign(p_corrected=np.nan)
    for _, family in tests.dropna(subset=["p"]).groupby(["backend", "tool"]):
        tests.loc[family.index, "p_corrected"] = multipletests(family["p"], method="fdr_bh")[1]
    return tests


def repeatability(table: pd.DataFrame) -> pd.DataFrame:
    """Coefficient of repeatability per region and tool (Table 4), over `scans` pairs.

    Taken here: cr_ml = 1.96 sqrt(sum(d^2) / n), d the difference between the volumes of output and original
    (Bland and Altman 1986); normalised (section 2.3.4), cr_percent is cr_ml in % of the mean original volume.
    """
    rows = []
    for key, cell in cells(volume_pairs(table), ("backend", "region"), tools_of(table)):
        cell = cell.dropna(subset=["difference_ml"])
        cr = 1.96 * float(np.sqrt((cell["difference_ml"] ** 2).mean()))
        rows.append((*key, len(cell), cr, 100 * cr / cell["original_ml"].mean()))
    return frame(rows, "backend region tool scans cr_ml cr_percent")


def dice_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Dice overlap with the original's segmentation per region and tool (Table 7), and the worst of it."""
    rows = []
    for key, cell in cells(regional(table, "dice"), ("backend", "region"), tools_of(table)):
        rows.append((*key, cell["value"].count(), *mean_sd(cell["value"]), cell["value"].min()))
    return frame(rows, "backend region tool scans dice dice_sd worst")


# --- exclusion criteria -----------------------------------------------------------------------------------


def failed_segmentations(table: pd.DataFrame, limits: Mapping[str, float] = LIMITS) -> pd.DataFrame:
    """C3 of each scan and backend: scan, backend, dice, failed.

    Taken here: the segmentation of an original has failed where a region of it has no volume, or where `dice`
    (mean over regions, then median over tools, as one bad tool is not the original's fault) lies more than
    limits["dice_iqr"] interquartile ranges below the first quartile of all scans.
    """
    volumes, overlaps = (regional(table, name) for name in ("volume_ml", "dice"))
    originals = volumes[volumes["tool"] == ORIGINAL]
    rows = []
    for backend in dict.fromkeys([*originals["backend"], *overlaps["backend"]]):
        own = originals[originals["backend"] == backend]
        empty = set(own.loc[~(own["value"] > 0), "scan"])
        means = overlaps[overlaps["backend"] == backend].groupby(["scan", "tool"])["value"].mean()
        dice = means.groupby("scan").median()
        low, high = dice.quantile(0.25), dice.quantile(0.75)
        outlying = set(dice.index[dice < low - limits["dice_iqr"] * (high - low)])
        for scan in dict.fromkeys([*own["scan"], *dice.index]):
            rows.append((scan, backend, dice.get(scan, np.nan), scan in empty | outlying))
    return frame(rows, "scan backend dice failed")


def excluded(table: pd.DataFrame, limits: Mapping[str, float] = LIMITS) -> pd.DataFrame:
    """The criteria each scan and tool meets: scan, tool, and C1, C2, C3 as True, False or NA (not measured).

    C1: more than limits["brain_voxels_changed"] values changed inside the brain mask. C2: more than
    limits["tissue_left_percent"] of the face is left. C3: see `failed_segmentations`, met in any backend.
    """
    named = (table["tool"] != ORIGINAL) & (table["scan"].fillna("") != "")
    pairs = table.loc[named, ["scan", "tool"]].drop_duplicates(ignore_index=True)
    for criterion, measure in (("C1", "brain_voxels_changed"), ("C2", "tissue_left_percent")):
        measured = pairs.merge(rows_of(table, measure), "left", ["scan", "tool"])["value"]
        pairs[criterion] = (measured > limits[measure]).astype("boolean").mask(measured.isna())
    failed = failed_segmentations(table, limits).astype({"failed": "boolean"}).groupby("scan")["failed"].any()
    return pairs.assign(C3=pairs["scan"].map(failed).astype("boolean"))


def exclusions(table: pd.DataFrame, limits: Mapping[str, float] = LIMITS) -> pd.DataFrame:
    """How many scans of each tool meet C1, C2, C3 and any of them (Table 2); NaN where none was measured.

    `unmeasured` counts the scans of which C1 or C2 is not known. limits: see `excluded`.
    """
    flags = excluded(table, limits)
    rows = []
    for tool in tools_of(table):
        own = flags[flags["tool"] == tool]
        counts = [own[name].sum() if own[name].notna().any() else np.nan for name in ("C1", "C2", "C3")]
        rows.append((tool, len(own), *counts, _met(own).sum(), own[["C1", "C2"]].isna().any(axis=1).sum()))
    return frame(rows, "tool scans C1 C2 C3 excluded unmeasured")


def kept(
    table: pd.DataFrame, limits: Mapping[str, float] = LIMITS, criteria: Collection[str] = ("C3",)
) -> pd.DataFrame:
    """The table without the volumes and overlaps of scans that meet one of `criteria`.

    By default C3 alone, and that in the backend that failed: C1 and C2 are a tool's own failures, and leaving
    them out would flatter it.
    """
    failed = failed_segmentations(table, limits)
    failed = failed[failed["failed"].astype(bool)] if "C3" in criteria else failed[:0]
    flags = excluded(table, limits)
    met = flags[_met(flags, [name for name in ("C1", "C2") if name in criteria])]
    backends = [str(part).split("/")[0] for part in table["part"]]
    without_scan = _members(table["scan"], backends, failed["scan"], failed["backend"])
    without_pair = _members(table["scan"], table["tool"], met["scan"], met["tool"])
    return table[~(table["measure"].isin(["volume_ml", "dice"]) & (without_scan | without_pair))]


def _met(flags: pd.DataFrame, criteria: Collection[str] = ("C1", "C2", "C3")) -> pd.Series[bool]:
    return flags[list(criteria)].fillna(False).astype(bool).any(axis=1)


def _members(first: Collection[str], second: Collection[str], *pairs: Collection[str]) -> np.ndarray:
    """Which pairs of `first` and `second` are among `pairs`."""
    wanted = set(zip(*pairs, strict=True))
    return np.array([pair in wanted for pair in zip(first, second, strict=True)], bool)


# --- re-identification ------------------------------------------------------------------------------------


def match_threshold(
    correct: np.ndarray, incorrect: np.ndarray, false_match_rate: float = FALSE_MATCH_RATE
) -> Match:
    """The greatest distance among the incorrect matches below which at most `false_match_rate` of them lie
    (appendix D); NaN without incorrect matches. correct, incorrect: distances in any order, NaN left out."""
    ordered = np.sort(known(incorrect))
    if not ordered.size:
        return Match(np.nan, np.nan, np.nan)
    threshold = float(ordered[min(int(false_match_rate * ordered.size), ordered.size - 1)])
    return _match_at(threshold, correct, incorrect)


def _match_at(threshold: float, correct: np.ndarray, incorrect: np.ndarray) -> Match:
    return Match(threshold, mean_sd(known(incorrect) < threshold)[0], mean_sd(known(correct) >= threshold)[0])


def embedder_choice(correct: Mapping[str, np.ndarray], incorrect: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """How far apart the distances of correct and of incorrect matches lie, by embedder (appendix D, Figure 10).

    H and p: Kruskal-Wallis. Taken here: relative_overlap = 1 - D, D the greatest distance between the two
    cumulative distributions (Kolmogorov-Smirnov). That is the area two densities share if they cross once: 0 if
    one threshold tells all matches apart, 1 if the two are the same.
    """
    from scipy import stats

    rows = []
    for name, own in correct.items():
        groups = [known(own), known(incorrect[name])]
        test, overlap = (np.nan, np.nan), np.nan
        if all(group.size for group in groups):
            with np.errstate(invalid="ignore"):  # one value throughout
                test = stats.kruskal(*groups)
            overlap = 1 - float(stats.ks_2samp(*groups).statistic)
        summary = [number for group in groups for number in (group.size, *mean_sd(group))]
        rows.append((name, *summary, *test, overlap))
    return frame(
        rows, "embedder correct correct_distance correct_distance_sd incorrect incorrect_distance "
        "incorrect_distance_sd H p relative_overlap",
    )  # fmt: skip


def identifiability(table: pd.DataFrame, threshold: float | Mapping[str, float]) -> pd.DataFrame:
    """How well outputs are matched to their originals, by embedder and tool (Table 5; identification).

    threshold: the distance below which two faces match, one for all or by embedder (NaN: unknown).
    A face that is not detected counts as not identified: its inverse distance is 0, it is not below the
    threshold and has no rank; distance and auc are means over the detected. Taken here: mean_inverse_distance is
    the mean of 1 / distance (section 2.3.4), infinite for a copy of the original. The interval of
    identifiable_percent is exact, those of rank_1_percent, rank_5_percent and auc are bootstrapped over scans.
    """
    distances, ranks, aucs = (rows_of(table, name, "embedder") for name in ("own_distance", "rank", "auc"))
    tools = [*[ORIGINAL] * bool((distances["tool"] == ORIGINAL).any()), *tools_of(table)]
    rows = []
    for (embedder, tool), cell in cells(distances, ("embedder",), tools):
        distance, rank = cell["value"].to_numpy(), values(ranks, tool, embedder)
        limit = threshold.get(embedder, np.nan) if isinstance(threshold, Mapping) else threshold
        with np.errstate(divide="ignore"):
            inverse = np.where(np.isnan(distance), 0, 1 / distance)
        mean_inverse = inverse.mean() if inverse.size else np.nan
        rows.append((
            embedder, tool, len(distance), np.isnan(distance).sum(), *mean_sd(distance), mean_inverse,
            limit, *percent_below(distance, limit), *bootstrapped(100 * (rank <= 1)),
            *bootstrapped(100 * (rank <= 5)), *bootstrapped(values(aucs, tool, embedder)),
        ))  # fmt: skip
    return frame(
        rows, "embedder tool scans not_detected distance distance_sd mean_inverse_distance threshold "
        "identifiable_percent identifiable_percent_low identifiable_percent_high rank_1_percent "
        "rank_1_percent_low rank_1_percent_high rank_5_percent rank_5_percent_low rank_5_percent_high "
        "auc auc_low auc_high",
    )  # fmt: skip


def diversity(table: pd.DataFrame) -> pd.DataFrame:
    """Are there twins, is a training face handed out, do seeds differ? Per embedder and tool, the originals first:
    pair_distance between the outputs of two people, training_distance to the nearest training face,
    seed_distance between two seeds on one scan; mean, SD, and the smallest of the first two."""
    names = "pair_distance", "training_distance", "seed_distance"
    pairs, training, seeds = (rows_of(table, name, "embedder", "other") for name in names)
    embedders = dict.fromkeys([*pairs["embedder"], *training["embedder"], *seeds["embedder"]])
    rows = []
    for embedder in embedders:
        for tool in (ORIGINAL, *tools_of(table)):
            pair, nearest, seed = (known(values(part, tool, embedder)) for part in (pairs, training, seeds))
            smallest = [min(array, default=np.nan) for array in (pair, nearest)]
            rows.append((
                embedder, tool, pair.size, *mean_sd(pair), smallest[0], *mean_sd(nearest), smallest[1],
                *mean_sd(seed),
            ))  # fmt: skip
    return frame(
        rows, "embedder tool pairs pair_distance pair_distance_sd smallest_pair training_distance "
        "training_distance_sd smallest_training seed_distance seed_distance_sd",
    )  # fmt: skip


# --- realism, time, balance -------------------------------------------------------------------------------


def realism_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Do outputs show a face? Per tool, the originals first: the share of `pictures` (scans x views) in which one
    is detected and its score, the seam (gradient ratio), and the Frechet distance, a column by embedder.

    That is a cohort's, not a scan's: rows with measure "frechet", scan "" and part embedder.
    """
    scores, seams, frechet = (rows_of(table, name, "embedder") for name in ("face_score", "seam", "frechet"))
    rows = []
    for tool in (ORIGINAL, *tools_of(table)):
        score, seam = (known(part.loc[part["tool"] == tool, "value"]) for part in (scores, seams))
        share = mean_sd(100 * (score > 0))[0]
        rows.append((tool, score.size, share, *mean_sd(score[score > 0]), *mean_sd(seam)))
    summary = frame(rows, "tool pictures detected_percent face_score face_score_sd seam seam_sd")
    for name in dict.fromkeys(frechet["embedder"]):
        summary[f"frechet_{name}"] = [mean_sd(values(frechet, tool, name))[0] for tool in summary["tool"]]
    measured = len(scores) + len(seams) + len(frechet)
    return summary if measured else summary[:0]


def processing_time(table: pd.DataFrame) -> pd.DataFrame:
    """Seconds per scan by device (the part of time_s) and tool (Table 6); a device a tool was not timed on has no
    row."""
    rows = []
    for key, cell in cells(rows_of(table, "time_s", "device"), ("device",), tools_of(table)):
        seconds = cell["value"]
        if seconds.size:
            rows.append((*key, seconds.count(), *mean_sd(seconds), seconds.median(), seconds.max()))
    return frame(rows, "device tool scans seconds seconds_sd median slowest")


def tradeoff(repeatability: pd.DataFrame, identifiability: pd.DataFrame) -> pd.DataFrame:
    """The balance of section 2.3.4 (Figure 5) of what the two functions of these names gave, per backend, embedder
    and tool: ncr_percent, the normalised coefficient of repeatability (mean over regions), against
    mean_inverse_distance; 0 is best in both."""
    means = repeatability.groupby(["backend", "tool"], sort=False)["cr_percent"].mean()
    columns = ["embedder", "tool", "scans", "not_detected", "mean_inverse_distance", "identifiable_percent", "auc"]
    balance = means.reset_index(name="ncr_percent").merge(identifiability[columns], on="tool")
    return balance[["backend", "embedder", "tool", "ncr_percent", *columns[2:]]]


def tuning(balance: pd.DataFrame, settings: pd.DataFrame) -> pd.DataFrame:
    """The trade-off by training epoch and dropout (Figure 8); a tool of the settings that was not measured is NaN.

    balance: what `tradeoff` gave.  settings: columns tool, epoch, dropout.
    """
    merged = settings[["epoch", "dropout", "tool"]].merge(balance, "left", "tool")
    return merged.sort_values(["backend", "embedder", "epoch", "dropout"], ignore_index=True)


# --- all of it --------------------------------------------------------------------------------------------


def tables(
    table: pd.DataFrame,
    *,
    limits: Mapping[str, float] | None = None,
    criteria: Collection[str] = ("C3",),
    thresholds: Mapping[str, float] | None = None,
    false_match_rate: float = FALSE_MATCH_RATE,
    settings: pd.DataFrame | None = None,
) -> dict[str, pd.DataFrame]:
    """All tables of a study by name (see `readable.CAPTIONS`), without those that would have no row.

    limits: what differs from LIMITS.  criteria: see `kept`.  thresholds: by embedder; else it is the one with
    `false_match_rate` among this study's originals.  settings: see `tuning`.
    """
    bounds = LIMITS | dict(limits or {})
    flags, volumetry, distances = excluded(table, bounds), kept(table, bounds, criteria), matches(table)
    given = dict(thresholds or {})
    used = {
        name: _match_at(given[name], *pair) if name in given else match_threshold(*pair, false_match_rate)
        for name, pair in distances.items()
    }
    embedders = embedder_choice(*({name: pair[side] for name, pair in distances.items()} for side in (0, 1)))
    for column in Match._fields:
        embedders[column] = [getattr(used[name], column) for name in embedders["embedder"]]
    limit = given | {name: match.threshold for name, match in used.items()}
    everything = {
        "table_2_exclusions": exclusions(table, bounds),
        "table_2_excluded_scans": flags[_met(flags)],
        "table_3_volume_differences": volume_differences(volumetry).merge(wilcoxon(volumetry)),
        "table_4_repeatability": repeatability(volumetry),
        "table_5_identifiability": identifiability(table, limit),
        "table_6_processing_time": processing_time(table),
        "table_7_dice": dice_summary(volumetry),
        "table_embedders": embedders,
        "table_realism": realism_summary(table),
        "table_diversity": diversity(table),
    }
    balance = tradeoff(everything["table_4_repeatability"], everything["table_5_identifiability"])
    everything["table_tradeoff"] = balance
    if settings is not None:
        everything["table_tuning"] = tuning(balance, settings)
    return {name: frame for name, frame in everything.items() if len(frame)}
