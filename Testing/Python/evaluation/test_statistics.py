"""Statistics: from the tidy table of a study to its tables."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from RefaceCGANLib.evaluation import statistics
from RefaceCGANLib.evaluation.measurements import ORIGINAL, RESAMPLES, rows_of, volume_pairs
from RefaceCGANLib.evaluation.tables import CAPTIONS, number, readable, with_deviation, with_interval
from scipy import stats
from scipy.spatial.distance import cdist
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

NAN = float("nan")
COLUMNS = ["scan", "tool", "measure", "part", "value"]


def tidy(*rows: tuple[str, str, str, str, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


def volumes(tool: str, values: list[float], part: str = "net/GM", measure: str = "volume_ml") -> pd.DataFrame:
    """The same measure of scans s0, s1, ..."""
    return tidy(*((f"s{i}", tool, measure, part, value) for i, value in enumerate(values)))


def table_of(*frames: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True)


def only(frame: pd.DataFrame, **where: str) -> pd.Series:
    """The one row with these values."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0]


@pytest.fixture(scope="module")
def cohort() -> pd.DataFrame:
    """12 scans, two regions; "shift" makes GM 3 % larger, "noise" changes it at random, "copy" not at all."""
    random = np.random.default_rng(5)
    frames = []
    for region, size in (("GM", 700), ("thalamus", 15)):
        own = size * random.normal(1, 0.1, 12)
        noise = own * (1 + random.normal(0, 0.01, 12))
        part = f"net/{region}"
        frames += [
            volumes(ORIGINAL, own.tolist(), part),
            volumes("shift", (1.03 * own + random.normal(0, 0.01 * size, 12)).tolist(), part),
            volumes("noise", noise.tolist(), part),
            volumes("copy", own.tolist(), part),
            volumes("noise", (1 - abs(noise / own - 1)).tolist(), part, "dice"),
            volumes("copy", [1.0] * 12, part, "dice"),
        ]
    frames += [
        volumes("copy", [0.0] * 12, "arc", "own_distance"), volumes("copy", [1.0] * 12, "arc", "rank"),
        volumes("copy", [1.0] * 12, "arc", "auc"), volumes("noise", [0.5] * 12, "arc", "own_distance"),
        volumes("noise", random.integers(1, 12, 12).tolist(), "arc", "rank"),
        volumes("noise", random.random(12).tolist(), "arc", "auc"),
        volumes(ORIGINAL, random.normal(0.2, 0.03, 12).tolist(), "arc", "rescan_distance"),
        tidy(*((f"s{i}", ORIGINAL, "pair_distance", f"arc/s{j}", random.normal(0.7, 0.05))
               for i in range(12) for j in range(i + 1, 12))),
        volumes("noise", [3.0] * 12, "cpu", "time_s"),
    ]  # fmt: skip
    return table_of(*frames)


@pytest.fixture(scope="module")
def tables(cohort: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return statistics.tables(cohort)


# the fixed point: an original against itself


def test_a_copy_of_the_original_differs_in_nothing(tables: dict[str, pd.DataFrame]) -> None:
    for region in ("GM", "thalamus"):
        row = only(tables["table_3_volume_differences"], tool="copy", region=region)
        assert row["bias_ml"] == row["absolute_ml"] == row["absolute_ml_sd"] == row["absolute_percent"] == 0
        assert row["p"] == row["p_corrected"] == 1
        row = only(tables["table_4_repeatability"], tool="copy", region=region)
        assert row["cr_ml"] == row["cr_percent"] == 0
        row = only(tables["table_7_dice"], tool="copy", region=region)
        assert (row["dice"], row["dice_sd"], row["worst"]) == (1, 0, 1)
    row = only(tables["table_5_identifiability"], tool="copy")
    assert row["distance"] == 0 and row["mean_inverse_distance"] == np.inf
    assert row["auc"] == row["auc_low"] == row["auc_high"] == 1
    assert row["rank_1_percent"] == row["identifiable_percent"] == 100


# volumetry


def test_volume_differences_by_hand() -> None:
    table = table_of(volumes(ORIGINAL, [10, 20]), volumes("a", [11, 18]))
    row = only(statistics.volume_differences(table))
    assert row[["backend", "region", "tool", "scans"]].tolist() == ["net", "GM", "a", 2]
    assert (row["original_ml"], row["bias_ml"], row["absolute_ml"]) == (15, -0.5, 1.5)
    assert row["absolute_ml_sd"] == pytest.approx(np.sqrt(0.5))
    assert row["absolute_percent"] == pytest.approx(10) and row["absolute_percent_sd"] == pytest.approx(0)


def test_repeatability_by_hand() -> None:
    table = table_of(volumes(ORIGINAL, [10, 20]), volumes("a", [11, 18]))
    row = only(statistics.repeatability(table))
    assert row["cr_ml"] == pytest.approx(1.96 * np.sqrt((1 + 4) / 2))
    assert row["cr_percent"] == pytest.approx(100 * row["cr_ml"] / 15)


def test_wilcoxon_by_hand() -> None:
    table = table_of(volumes(ORIGINAL, [1, 2, 3, 4, 5]), volumes("a", [2, 4, 6, 8, 10]))
    row = only(statistics.wilcoxon(table))
    assert (row["scans"], row["W"]) == (5, 0)
    assert row["p"] == row["p_corrected"] == pytest.approx(2 / 2**5)  # all of one sign, either way


def test_wilcoxon_is_scipys_and_its_correction_statsmodels(cohort: pd.DataFrame) -> None:
    tests = statistics.wilcoxon(cohort)
    pairs = volume_pairs(cohort)
    for tool in ("shift", "noise"):
        own = tests[tests["tool"] == tool]
        expected = [
            stats.wilcoxon(cell["output_ml"], cell["original_ml"]).pvalue
            for _, cell in pairs[pairs["tool"] == tool].groupby("region", sort=False)
        ]
        assert own["p"].tolist() == pytest.approx(expected)
        assert own["p_corrected"].tolist() == pytest.approx(multipletests(expected, method="fdr_bh")[1])
    assert only(tests, tool="shift", region="GM")["p_corrected"] < 0.05


def test_regions_are_corrected_within_one_tool_and_backend() -> None:
    parts = [f"net/r{i}" for i in range(3)] + ["other/r0"]
    frames = [volumes(ORIGINAL, [1, 2, 3, 4, 5, 6], part) for part in parts]
    outputs = [[2, 4, 6, 8, 10, 12], [2, 4, 6, 8, 10, 5], [2, 1, 6, 2, 9, 5], [2, 4, 6, 8, 10, 12]]
    frames += [volumes("a", values, part) for values, part in zip(outputs, parts, strict=True)]
    tests = statistics.wilcoxon(table_of(*frames))
    p = tests["p"]
    by_hand = [min(p[0] * 3, p[1] * 3 / 2, p[2]), min(p[1] * 3 / 2, p[2]), p[2], p[3]]
    assert tests["p_corrected"].tolist() == pytest.approx(by_hand)


def test_dice_by_hand() -> None:
    table = table_of(volumes("a", [0.8, 0.9, NAN, 1.0], measure="dice"))
    row = only(statistics.dice_summary(table))
    assert (row["scans"], row["worst"]) == (3, 0.8)
    assert (row["dice"], row["dice_sd"]) == pytest.approx((0.9, 0.1))


def test_backends_stay_together_and_regions_have_the_order_of_the_paper() -> None:
    parts = [f"{backend}/{region}" for backend in ("net", "fast") for region in ("amygdala", "lobe", "GM", "TIV")]
    table = table_of(*(volumes("a", [0.9], part, "dice") for part in parts))
    summary = statistics.dice_summary(table)
    assert summary["backend"].tolist() == ["net"] * 4 + ["fast"] * 4
    assert summary["region"].tolist() == ["TIV", "GM", "amygdala", "lobe"] * 2


# what is missing


def test_a_missing_output_is_counted_not_guessed() -> None:
    table = table_of(
        volumes(ORIGINAL, [10, 20, 30]), volumes("a", [11, 18, NAN]), volumes("b", [11, 18]),
        tidy(("s0", "c", "time_s", "cpu", 1)),
    )  # fmt: skip
    differences, tests = statistics.volume_differences(table), statistics.wilcoxon(table)
    assert differences["scans"].tolist() == tests["scans"].tolist() == [2, 2, 0]
    assert np.isnan(only(differences, tool="c")["absolute_ml"]) and np.isnan(only(tests, tool="c")["p_corrected"])
    assert np.isnan(only(statistics.repeatability(table), tool="c")["cr_ml"])


def test_an_output_whose_original_was_not_segmented_has_no_difference() -> None:
    table = table_of(volumes(ORIGINAL, [10]), volumes("a", [11, 18]))
    assert only(statistics.volume_differences(table))["scans"] == 1


def test_one_scan_gives_means_without_deviation(cohort: pd.DataFrame) -> None:
    tables = statistics.tables(cohort[cohort["scan"] == "s3"])
    row = only(tables["table_3_volume_differences"], tool="shift", region="GM")
    assert row["scans"] == 1 and row["absolute_ml"] > 0 and np.isnan(row["absolute_ml_sd"])
    row = only(tables["table_5_identifiability"], tool="noise")
    assert row["distance"] == 0.5 and np.isnan(row["auc_low"])


def test_of_an_empty_table_there_are_no_tables(cohort: pd.DataFrame) -> None:
    assert statistics.tables(cohort[:0]) == {}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("measure", ["volume_ml", "dice", "own_distance", "auc", "pair_distance", "time_s"])
def test_a_table_of_one_measure_or_of_nothing_known_is_no_trouble(cohort: pd.DataFrame, measure: str) -> None:
    for table in (cohort[cohort["measure"] == measure], cohort[cohort["tool"] != ORIGINAL]):
        readable(statistics.tables(table))
        readable(statistics.tables(table.assign(value=NAN)))


def test_two_values_of_one_thing_are_refused() -> None:
    table = table_of(volumes(ORIGINAL, [10]), volumes(ORIGINAL, [11]))
    with pytest.raises(ValueError, match=r"volume_ml has two values for \['s0', 'original', 'net/GM'\]"):
        statistics.volume_differences(table)


def test_the_table_gives_the_same_when_read_back_from_csv(cohort: pd.DataFrame) -> None:
    few = cohort[cohort["scan"].isin(["s0", "s1", "s2"])]
    table = table_of(few, tidy(("", "noise", "frechet", "arc", 0.3), ("s0", "noise", "seam", "", 1.2)))
    again = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    before, after = statistics.tables(table), statistics.tables(again)
    assert list(before) == list(after)
    for name in before:
        pd.testing.assert_frame_equal(before[name], after[name], check_dtype=False)


# exclusion criteria


def excludable() -> pd.DataFrame:
    dice = [0.98, 0.97, 0.98, 0.97, 0.99, 0.2]
    return table_of(
        volumes("a", [0, 3, 0, NAN], "", "brain_voxels_changed"),
        volumes("a", [1, 2, 90, 99], "", "tissue_left_percent"),
        *(volumes(tool, dice, "net/GM", "dice") for tool in ("a", "b")),
        *(volumes(tool, [0.9] * 6, "hmrf/GM", "dice") for tool in ("a", "b")),
        *(volumes(tool, [700.0] * 6, "net/GM") for tool in (ORIGINAL, "a", "b")),
        *(volumes(tool, [700.0] * 6, "hmrf/GM") for tool in (ORIGINAL, "a", "b")),
    )


def test_criteria_are_counted_by_tool() -> None:
    counts = statistics.exclusions(excludable())
    row = only(counts, tool="a")
    assert row[["scans", "C1", "C2", "C3", "excluded", "unmeasured"]].tolist() == [6, 1, 2, 1, 4, 3]
    row = only(counts, tool="b")
    assert np.isnan(row["C1"]) and np.isnan(row["C2"]) and row["C3"] == row["excluded"] == 1


def test_the_limits_are_the_users() -> None:
    limits = statistics.LIMITS | {"brain_voxels_changed": 10, "tissue_left_percent": 95, "dice_iqr": 100}
    row = only(statistics.exclusions(excludable(), limits), tool="a")
    assert row[["C1", "C2", "C3"]].tolist() == [0, 1, 0]


def test_each_excluded_scan_is_named() -> None:
    named = statistics.tables(excludable())["table_2_excluded_scans"]
    assert only(named, scan="s1", tool="a")["C1"] and only(named, scan="s2", tool="a")["C2"]
    assert only(named, scan="s5", tool="b")["C3"] and only(named, scan="s3", tool="a")["C1"] is pd.NA


def test_a_segmentation_without_a_region_has_failed() -> None:
    table = table_of(volumes(ORIGINAL, [700, 0, NAN]), volumes("a", [1, 1, 1]))
    assert statistics.failed_segmentations(table)["failed"].tolist() == [False, True, True]


def test_one_bad_tool_is_not_the_originals_fault() -> None:
    good, bad = [0.98, 0.97, 0.98, 0.97, 0.99, 0.98], [0.9, 0.91, 0.9, 0.91, 0.9, 0.2]
    table = table_of(*(volumes(name, good if name != "c" else bad, measure="dice") for name in "abc"))
    assert not statistics.failed_segmentations(table)["failed"].any()


def test_volumetry_leaves_out_what_failed_in_its_own_backend_alone() -> None:
    scans = statistics.volume_differences(statistics.kept(excludable()))
    assert only(scans, tool="a", backend="net")["scans"] == 5
    assert only(scans, tool="a", backend="hmrf")["scans"] == 6
    scans = statistics.volume_differences(statistics.kept(excludable(), criteria=("C1", "C2")))
    assert scans.set_index(["backend", "tool"])["scans"].to_dict() == {
        ("net", "a"): 3, ("net", "b"): 6, ("hmrf", "a"): 3, ("hmrf", "b"): 6,
    }  # fmt: skip


# re-identification


def test_the_threshold_by_hand() -> None:
    incorrect = np.array([0.9, 0.3, 0.5, 0.7, 0.4, 0.6, 0.8, 1.0, 0.2, NAN, 1.1])
    match = statistics.match_threshold(np.array([0.1, 0.3, 0.35, NAN]), incorrect, 0.2)
    assert match == (0.4, 0.2, 0.0)
    assert statistics.match_threshold(np.array([0.1, 0.5]), incorrect, 0.2).false_non_match_rate == 0.5


@pytest.mark.parametrize("rate", [0, 0.001, 0.01, 0.29, 0.5, 1])
def test_no_more_false_matches_than_allowed(rate: float) -> None:
    incorrect = np.random.default_rng(1).integers(0, 40, 100) / 40  # with ties
    match = statistics.match_threshold(np.array([0.1]), incorrect, rate)
    assert match.false_match_rate == np.mean(incorrect < match.threshold) <= rate


def test_without_incorrect_matches_there_is_no_threshold() -> None:
    assert np.isnan(statistics.match_threshold(np.array([0.1]), np.array([NAN]))).all()


def test_embedders_are_compared_by_kruskal_wallis_and_overlap() -> None:
    random = np.random.default_rng(2)
    near, far = random.normal(0.3, 0.1, 20), random.normal(0.7, 0.1, 50)
    correct = {"apart": near - 1, "some": near, "same": far, "by hand": np.array([1, 2, 3, NAN]), "none": far[:0]}
    choice = statistics.embedder_choice(correct, dict.fromkeys(correct, far) | {"by hand": np.array([3, 4])})
    for name in ("apart", "some", "same"):
        row = only(choice, embedder=name)
        assert tuple(row[["H", "p"]]) == pytest.approx(tuple(stats.kruskal(correct[name], far)))
        assert row["incorrect"] == 50 and row["incorrect_distance"] == pytest.approx(far.mean())
    overlaps = choice.set_index("embedder")["relative_overlap"]
    assert overlaps["apart"] == pytest.approx(0) and overlaps["same"] == 1 and 0 < overlaps["some"] < 0.2
    assert overlaps["by hand"] == pytest.approx(1 / 3)  # a threshold below 3 parts two of three from all others
    row = only(choice, embedder="by hand")
    assert row[["correct", "incorrect"]].tolist() == [3, 2] and row["correct_distance"] == 2
    # ranks 1, 2, 3.5 and 3.5, 5: H = 12 / (5 * 6) * (6.5^2 / 3 + 8.5^2 / 2) - 3 * 6, over 1 - 6 / 120 for the tie
    assert row["H"] == pytest.approx((0.4 * (6.5**2 / 3 + 8.5**2 / 2) - 18) / 0.95)
    row = only(choice, embedder="none")
    assert row["correct"] == 0 and np.isnan(row["H"]) and np.isnan(row["relative_overlap"])


def test_identifiability_by_hand() -> None:
    table = table_of(
        volumes("a", [0.2, 0.5, NAN, 0.4], "arc", "own_distance"), volumes("a", [1, 7, NAN, 4], "arc", "rank"),
        volumes("a", [1.0, 0.4, NAN, 0.7], "arc", "auc"),
    )  # fmt: skip
    row = only(statistics.identifiability(table, 0.4))
    assert row[["scans", "not_detected", "threshold"]].tolist() == [4, 1, 0.4]
    assert (row["distance"], row["distance_sd"]) == pytest.approx((1.1 / 3, np.std([0.2, 0.5, 0.4], ddof=1)))
    assert row["mean_inverse_distance"] == pytest.approx((5 + 2 + 0 + 2.5) / 4)
    assert row[["identifiable_percent", "rank_1_percent", "rank_5_percent"]].tolist() == [25, 25, 50]
    assert row["auc"] == pytest.approx(0.7)


def test_intervals_are_statsmodels_and_scipys(cohort: pd.DataFrame) -> None:
    row = only(statistics.identifiability(cohort, {"arc": 0.6}), tool="noise")
    exact = 100 * np.array(proportion_confint(12, 12, method="beta"))
    assert row[["identifiable_percent_low", "identifiable_percent_high"]].tolist() == pytest.approx(exact)
    auc = rows_of(cohort, "auc", "embedder").query("tool == 'noise'")["value"].to_numpy()
    drawn = stats.bootstrap((auc,), np.mean, n_resamples=RESAMPLES, method="percentile", random_state=1)
    assert (row["auc_low"], row["auc_high"]) == pytest.approx(tuple(drawn.confidence_interval))
    assert row["auc_low"] < row["auc"] < row["auc_high"]


def faces(tool: str, probes: np.ndarray, gallery: np.ndarray) -> pd.DataFrame:
    """Distance, rank and AUC of each probe against the gallery, whose face of the same place is its own."""
    distances = cdist(probes, gallery, "cosine")
    own = np.diag(distances)[:, None]
    others = ~np.eye(len(probes), dtype=bool)
    auc = [np.mean(line[keep] > mine) for line, keep, mine in zip(distances, others, own, strict=True)]
    rank = 1 + np.sum((distances < own) & others, axis=1)
    numbers = {"own_distance": own[:, 0].tolist(), "rank": rank.tolist(), "auc": auc}
    return table_of(*(volumes(tool, values, "arc", measure) for measure, values in numbers.items()))


def test_shuffled_pairs_are_no_better_than_chance() -> None:
    random = np.random.default_rng(0)
    gallery = random.normal(0, 1, (40, 64)) + 1
    probes = gallery + random.normal(0, 0.5, gallery.shape)
    shuffled = [faces(f"shuffled {i}", random.permutation(probes), gallery) for i in range(20)]
    told = statistics.identifiability(table_of(faces("true", probes, gallery), *shuffled), 0.4)
    row = only(told, tool="true")
    assert row["auc"] == 1 and row["rank_1_percent"] == 100
    told = told[told["tool"] != "true"]
    assert np.sum((told["auc_low"] < 0.5) & (told["auc_high"] > 0.5)) >= 17  # 19 of 20 on average
    assert told["auc"].mean() == pytest.approx(0.5, abs=0.03)
    assert told["rank_1_percent"].mean() == pytest.approx(100 / 40, abs=2)


def test_a_given_threshold_takes_the_place_of_the_found_one(cohort, tables) -> None:
    found = tables
    given = statistics.tables(cohort[cohort["measure"].str.contains("distance")], thresholds={"arc": 0.45})
    assert 0.45 < only(found["table_embedders"])["threshold"] < 0.7
    assert only(found["table_embedders"])["false_match_rate"] <= 0.01
    row = only(given["table_embedders"])
    assert row[["threshold", "false_match_rate", "false_non_match_rate"]].tolist() == [0.45, 0, 0]
    assert only(found["table_5_identifiability"], tool="noise")["identifiable_percent"] == 100
    assert only(given["table_5_identifiability"], tool="noise")["identifiable_percent"] == 0


def test_a_tool_that_gives_everyone_one_face_shows() -> None:
    rows = []
    for tool, distance in ((ORIGINAL, 0.7), ("average", 0.01)):
        for first, second in (("s0", "s1"), ("s0", "s2"), ("s1", "s2")):
            rows.append((first, tool, "pair_distance", f"arc/{second}", distance))
    table = table_of(
        tidy(*rows), volumes("average", [0.4, 0.6, NAN], "arc", "training_distance"),
        volumes("average", [0.0, 0.2], "arc", "seed_distance"),
    )  # fmt: skip
    summary = statistics.diversity(table)
    assert summary["tool"].tolist() == [ORIGINAL, "average"] and summary["pairs"].tolist() == [3, 3]
    row = only(summary, tool="average")
    assert row["pair_distance"] == pytest.approx(0.01) and row["smallest_pair"] == 0.01
    assert (row["training_distance"], row["smallest_training"]) == (0.5, 0.4)
    assert row["seed_distance"] == pytest.approx(0.1)
    assert np.isnan(only(summary, tool=ORIGINAL)["training_distance"])


# realism, time, balance


def test_realism_by_hand() -> None:
    table = table_of(
        *(volumes(ORIGINAL, [0.9, 0.8], view, "face_score") for view in ("frontal", "left")),
        volumes("a", [0.6, 0.0], "frontal", "face_score"), volumes("a", [0.0, 0.8], "left", "face_score"),
        volumes("a", [1.5, 2.5], "", "seam"), tidy(("", "a", "frechet", "my net", 0.3)),
    )  # fmt: skip
    row = only(statistics.realism_summary(table), tool="a")
    assert (row["pictures"], row["detected_percent"]) == (4, 50)
    assert row[["face_score", "seam", "frechet_my net"]].tolist() == pytest.approx([0.7, 2, 0.3])
    row = only(statistics.realism_summary(table), tool=ORIGINAL)
    assert row["detected_percent"] == 100 and np.isnan(row["frechet_my net"])


def test_the_cohorts_frechet_distance_is_no_scan(cohort: pd.DataFrame) -> None:
    table = table_of(cohort, tidy(("", "noise", "frechet", "arc", 0.3)))
    pd.testing.assert_frame_equal(statistics.exclusions(table), statistics.exclusions(cohort))


def test_time_is_told_by_device() -> None:
    table = table_of(
        volumes("a", [2, 4, 9], "cpu", "time_s"), volumes("a", [1], "cuda", "time_s"),
        volumes("b", [5, 5], "cpu", "time_s"),
    )  # fmt: skip
    times = statistics.processing_time(table)
    counts = times.set_index(["device", "tool"])["scans"]
    assert counts.to_dict() == {("cpu", "a"): 3, ("cpu", "b"): 2, ("cuda", "a"): 1}
    assert times.loc[0, ["seconds", "median", "slowest"]].tolist() == [5, 4, 9]
    assert times.loc[0, "seconds_sd"] == pytest.approx(np.std([2, 4, 9], ddof=1))


def test_the_tradeoff_sets_mean_repeatability_against_risk(tables: dict[str, pd.DataFrame]) -> None:
    repeatability = tables["table_4_repeatability"]
    row = only(tables["table_tradeoff"], tool="noise")
    expected = repeatability[repeatability["tool"] == "noise"]["cr_percent"].mean()
    assert row["ncr_percent"] == pytest.approx(expected) and row["mean_inverse_distance"] == 2
    assert set(tables["table_tradeoff"]["tool"]) == {"noise", "copy", "shift"}


def test_tuning_lists_every_epoch_and_dropout(tables: dict[str, pd.DataFrame]) -> None:
    settings = pd.DataFrame(
        [("noise", 200, 0.5), ("copy", 100, 0.5), ("never run", 100, 0.1)], columns=["tool", "epoch", "dropout"]
    )
    summary = statistics.tuning(tables["table_tradeoff"], settings)
    assert summary[["epoch", "dropout", "tool"]].to_numpy().tolist() == [
        [100, 0.5, "copy"], [200, 0.5, "noise"], [100, 0.1, "never run"],
    ]  # fmt: skip
    assert summary["mean_inverse_distance"].tolist()[:2] == [np.inf, 2] and summary["ncr_percent"].isna()[2]


# for people


def test_every_table_is_explained_and_made_of_short_texts(cohort: pd.DataFrame) -> None:
    settings = pd.DataFrame([("noise", 200, 0.5)], columns=["tool", "epoch", "dropout"])
    more = table_of(cohort, excludable().query("tool != 'original'").replace({"a": "noise", "b": "shift"}))
    more = more.drop_duplicates(COLUMNS[:-1])
    tables = statistics.tables(table_of(more, volumes("noise", [1.2] * 6, "", "seam")), settings=settings)
    of_cohort = {"table_headline", "table_attackers", "table_made_or_real"}
    assert set(tables) | of_cohort == set(CAPTIONS)
    for name, table in readable(tables).items():
        assert table.map(lambda cell: isinstance(cell, str) and 0 < len(cell) < 40).all(axis=None), name
        assert not [column for column in table if "_" in column or column.endswith((" sd", " low"))]


def test_tables_of_regions_have_a_column_per_tool() -> None:
    table = table_of(volumes(ORIGINAL, [10, 20, 30]), volumes("b", [11, 18, 33]), volumes("a", [10, 20.5]))
    tables = readable(statistics.tables(table))
    assert tables["table_3_volume_differences"].to_dict("records") == [
        {"backend": "net", "region": "GM", "b": "2.0 ± 1.0", "a": "0.25 ± 0.35 [2]"}
    ]
    assert tables["table_4_repeatability"]["b"].tolist() == ["4.23 (21 %)"]


def test_a_significant_difference_has_a_star(tables: dict[str, pd.DataFrame]) -> None:
    table = readable(tables)["table_3_volume_differences"].set_index("region")
    assert table.loc["GM", "shift"].endswith("*") and not table.loc["GM", "copy"].endswith("*")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1234"), (0.12345, "0.123"), (100.0, "100"), (3, "3"), (NAN, "–"), (pd.NA, "–"), (np.inf, "∞"),
     (True, "yes"), (0.0, "0"), (-2.0, "-2"), (4e-9, "4e-09"), ("GM", "GM")],
)  # fmt: skip
def test_numbers_are_short(value: object, text: str) -> None:
    assert number(value) == text


def test_deviations_and_intervals_are_rounded_alike() -> None:
    pairs = (0.99296, 0.00406), (49.2, 34.6), (1, 0), (0.5, NAN), (NAN, 1)
    texts = ["0.9930 ± 0.0041", "49 ± 35", "1 ± 0", "0.5 ± –", "–"]
    assert [with_deviation(*pair) for pair in pairs] == texts
    intervals = (6.667, 0.169, 31.9), (100.0, 78.2, 100.0), (NAN, NAN, NAN), (0.7, NAN, NAN)
    texts = ["6.7 (0.17 to 32)", "100 (78 to 100)", "–", "0.7"]
    assert [with_interval(*numbers) for numbers in intervals] == texts
