"""Figures: each is drawn from what the tables hold, and written as PNG and PDF."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.evaluation import figures, statistics
from RefaceCGANLib.evaluation.figure_style import DPI, PAGE, STYLE, Style, new_figure, save, styled, styles_of
from RefaceCGANLib.evaluation.measurements import matches, rows_of, volume_pairs

TOOLS = "reface", "blur"
NAN = float("nan")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Three scans, two tools, three regions, one backend, one embedder; blur lost its second scan."""
    random = np.random.default_rng(1)
    rows: list[tuple[str, str, str, str, float]] = []
    for scan in ("s0", "s1", "s2"):
        for region, size in (("GM", 700), ("WM", 500), ("thalamus", 15)):
            own = size * random.normal(1, 0.1)
            rows.append((scan, "original", "volume_ml", f"net/{region}", own))
            for tool in TOOLS:
                rows.append((scan, tool, "volume_ml", f"net/{region}", own * random.normal(1, 0.01)))
                rows.append((scan, tool, "dice", f"net/{region}", random.uniform(0.9, 1)))
        for tool in TOOLS:
            rows += [
                (scan, tool, "own_distance", "arc", random.uniform(0.4, 0.8)), (scan, tool, "rank", "arc", 2),
                (scan, tool, "auc", "arc", 0.5), (scan, tool, "time_s", "cpu", random.uniform(2, 9)),
            ]  # fmt: skip
        rows.append((scan, "original", "rescan_distance", "arc", random.uniform(0.1, 0.3)))
    for first, second in (("s0", "s1"), ("s0", "s2"), ("s1", "s2")):
        rows.append((first, "original", "pair_distance", f"arc/{second}", random.uniform(0.6, 0.8)))
    table = pd.DataFrame(rows, columns=["scan", "tool", "measure", "part", "value"])
    return table[(table["scan"] != "s1") | (table["tool"] != "blur")]


@pytest.fixture(scope="module")
def tables(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    settings = pd.DataFrame([("reface", 100, 0.1), ("blur", 200, 0.5)], columns=["tool", "epoch", "dropout"])
    return statistics.tables(table, settings=settings)


def pictures(scans: int) -> dict[str, dict[str, np.ndarray]]:
    faces = {tool: np.full((24, 20, 3), 40 * place, np.uint8) for place, tool in enumerate(("original", *TOOLS))}
    return {f"s{i}": dict(faces) for i in range(scans)}


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_a_study_gets_every_figure_as_png_and_pdf(table, tables, tmp_path: Path) -> None:
    drawn = figures.draw_all(table, tmp_path, tables, pictures(2))
    assert [title for title, _, _ in drawn] == [
        "Renders", "Bland-Altman, net, 1", "Bland-Altman, net, 2", "Trade-off", "Tuning, net, arc", "Matches",
        "Dice, net", "Re-identification, arc", "Processing time",
    ]  # fmt: skip
    for _, caption, path in drawn:
        assert caption.endswith((".", "?"))
        width, height = size_of(path)
        assert 300 < width <= PAGE * DPI and 100 < height < 1500
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    assert len(list(tmp_path.iterdir())) == 2 * len(drawn)


def test_what_was_not_measured_is_not_drawn(table: pd.DataFrame, tmp_path: Path) -> None:
    assert figures.draw_all(table[:0], tmp_path) == []
    detected = table[table["measure"] != "own_distance"]  # where NaN says that no face was detected
    assert figures.draw_all(detected.assign(value=NAN), tmp_path) == []
    assert not list(tmp_path.iterdir())
    times = table[(table["measure"] == "time_s") & (table["scan"] == "s0")]
    assert [title for title, _, _ in figures.draw_all(times, tmp_path)] == ["Processing time"]


@pytest.mark.filterwarnings("error")
def test_one_scan_is_enough(table: pd.DataFrame, tmp_path: Path) -> None:
    one = table[(table["scan"] == "s1") & ~table["part"].isin(["net/GM", "net/WM"])]
    titles = {title.split(",")[0] for title, _, _ in figures.draw_all(one, tmp_path)}
    assert titles >= {"Bland-Altman", "Dice", "Trade-off", "Re-identification", "Processing time"}


def test_each_figure_says_nothing_of_nothing(tmp_path: Path) -> None:
    empty = pd.DataFrame(columns=["scan", "tool", "measure", "part", "value"])
    path = tmp_path / "figure"
    assert figures.bland_altman(volume_pairs(empty), path) == []
    assert figures.dice_distributions(rows_of(empty, "dice", "backend", "region"), path) == []
    assert figures.match_histograms(matches(empty), path) == []
    assert figures.time_bars(rows_of(empty, "time_s", "device"), path) == []
    assert figures.render_sheet({}, path) == []
    identity = statistics.identifiability(empty, 0.4)
    assert figures.identification(identity, rows_of(empty, "own_distance", "embedder"), path) == []
    balance = statistics.tradeoff(statistics.repeatability(empty), identity)
    assert figures.tradeoff(balance, path) == []
    assert figures.tuning(balance.assign(epoch=[], dropout=[]), path) == []
    assert not list(tmp_path.iterdir())


def test_a_figure_drawn_again_is_the_same_bytes(table: pd.DataFrame, tmp_path: Path) -> None:
    times = rows_of(table, "time_s", "device")
    first, second = (figures.time_bars(times, tmp_path / name) for name in ("first", "second.try"))
    assert [path.name for path in second] == ["second.try.png", "second.try.pdf"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_tool_keeps_its_colour_and_marker_in_every_figure(table, tables, tmp_path: Path, monkeypatch) -> None:
    seen: list[dict[str, Style]] = []

    def look(*args: object) -> list[Path]:
        seen.append(next(arg for arg in args if isinstance(arg, dict)))
        return []

    for name in ("bland_altman", "tradeoff", "dice_distributions", "identification", "time_bars"):
        monkeypatch.setattr(figures, name, look)
    without = table[(table["tool"] != "reface") | (table["measure"] != "time_s")]
    figures.draw_all(without, tmp_path, tables)
    assert len(seen) == 6 and all(seen[0] == styles for styles in seen)
    assert styles_of(TOOLS).items() <= seen[0].items() and "original" in seen[0]


def test_two_dozen_tools_can_be_told_apart() -> None:
    styles = styles_of([f"tool {i}" for i in range(24)])
    assert len(set(styles.values())) == 24 and len({style.colour for style in [*styles.values()][:6]}) == 6


def test_a_copy_at_infinite_risk_leaves_room_for_the_others(tables, tmp_path: Path) -> None:
    balance = tables["table_tradeoff"]
    worse = balance.assign(mean_inverse_distance=[np.inf, *balance["mean_inverse_distance"][1:]])
    assert len(figures.tradeoff(worse, tmp_path / "one")) == 2
    assert figures.tradeoff(balance.assign(mean_inverse_distance=np.inf), tmp_path / "none") == []


def test_many_scans_take_several_pages_and_a_missing_render_is_shown(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(figures, "SCANS_A_PAGE", 2)
    faces = pictures(3)
    del faces["s0"]["blur"], faces["s1"]["original"]
    paths = figures.render_sheet(faces, tmp_path / "renders")
    names = ["renders_1.png", "renders_1.pdf", "renders_2.png", "renders_2.pdf"]
    assert [path.name for path in paths] == names
    assert size_of(paths[0])[1] > 1.3 * size_of(paths[2])[1]


def test_the_style_of_other_figures_stays(table: pd.DataFrame, tmp_path: Path) -> None:
    from matplotlib import rcParams

    before = dict(rcParams)
    figures.time_bars(rows_of(table, "time_s", "device"), tmp_path / "time")
    assert dict(rcParams) == before and before["font.size"] != STYLE["font.size"]


def test_no_window_and_no_global_figure_is_made(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, numpy as np\n"
        "from RefaceCGANLib.evaluation import figures\n"
        "assert not {'matplotlib', 'pandas', 'scipy', 'torch'} & set(sys.modules)\n"
        "face = {'s0': {'original': np.zeros((9, 9, 3), np.uint8)}}\n"
        f"assert figures.render_sheet(face, pathlib.Path({str(tmp_path)!r}, 'faces'))\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_figure_that_cannot_be_written_is_told_in_one_sentence(tmp_path: Path) -> None:
    draw = styled(lambda: save(new_figure(1, 1), tmp_path / "missing" / "figure"))
    with pytest.raises(InputError, match=r"figure\.png cannot be written"):
        draw()
