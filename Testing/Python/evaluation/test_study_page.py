"""The page: one file that needs nothing else and says what its numbers mean."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from RefaceCGANLib.evaluation import study_page as page
from RefaceCGANLib.evaluation.study_config import Study
from RefaceCGANLib.evaluation.tables import readable

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8ffff3f0005fe02fe"
    "0def46b80000000049454e44ae426082"
)
VOID = {"meta", "img", "br"}


class Parser(HTMLParser):
    """Checks that what is opened is closed, and collects texts, links and pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.open += [] if tag in VOID else [tag]
        self.ids |= {given["id"]} if "id" in given else set()
        self.links += [given["href"]] if "href" in given else []
        self.pictures += [given["src"]] if "src" in given else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(
        path=tmp_path / "small & fine.toml", output=tmp_path, originals={"a<b": tmp_path / "a.nii", "c": tmp_path},
        masks={}, tables=[{"kind": "files", "name": "mine", "pattern": "{scan}.nii"}], workers=2,
        false_match_rate=0.01, limits={"tissue_left_percent": 20.0},
    )  # fmt: skip


TABLES = {
    "table_2_exclusions": pd.DataFrame(
        {"tool": ["mine"], "scans": [2], "C1": [0.0], "C2": [1.0], "C3": [0.0], "excluded": [1], "unmeasured": [0]}
    ),
    "table_6_processing_time": pd.DataFrame(
        {"device": ["cpu"], "tool": ["mine"], "scans": [2], "seconds": [3.25], "seconds_sd": [0.5]}
    ),
}


def parsed(text: str) -> Parser:
    parser = Parser()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_is_whole_and_needs_nothing_else(study: Study, tmp_path: Path) -> None:
    picture = tmp_path / "figure_time.png"
    picture.write_bytes(PNG)
    drawn = [("Processing time", "Seconds & such.", picture)]
    parser = parsed(page.html(study, TABLES, readable(TABLES), drawn, []))
    assert len(parser.pictures) == 1 and parser.pictures[0].startswith("data:image/png;base64,")
    outside = [link for link in parser.links if not link.startswith(("#", "tables/"))]
    assert outside == ["https://arxiv.org/abs/2305.16922"]
    assert {link[1:] for link in parser.links if link.startswith("#")} <= parser.ids
    text = " ".join(parser.texts)
    assert "De-identification study: small & fine" in text and "a<b, c" in text
    assert "3.25 ± 0.5" in text and "shorter is better" in text and "Seconds & such." in text
    assert "Every tool ran on every scan" in text and "tissue_left_percent 20" in text


def test_it_is_readable_in_the_dark(study: Study) -> None:
    text = page.html(study, TABLES, readable(TABLES), [], [])
    assert "prefers-color-scheme: dark" in text and "color-scheme: light dark" in text


def test_failures_stand_at_the_top_with_their_reasons(study: Study) -> None:
    failures = [("a<b", "mine", "output", "The brain <was> not found.")]
    text = page.html(study, TABLES, readable(TABLES), [], failures)
    parser = parsed(text)
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles[:3] == ["At a glance", "Failures", "Exclusions"]
    assert "The brain <was> not found." in parser.texts and "a<b" in parser.texts
    assert any("Not everything succeeded" in piece for piece in parser.texts)


def test_sections_without_numbers_are_left_out(study: Study) -> None:
    text = page.html(study, TABLES, readable(TABLES), [], [])
    assert "Processing time" in text and "Brain volumes" not in text and "Re-identification" not in text


def test_the_glance_has_one_row_per_tool_and_a_column_per_volumetry(study: Study) -> None:
    volumes = pd.DataFrame({
        "backend": ["x", "x", "y"], "region": ["GM", "WM", "GM"], "tool": ["mine"] * 3, "scans": [2] * 3,
        "cr_ml": [1.0, 2.0, 3.0], "cr_percent": [1.0, 3.0, 8.0],
    })  # fmt: skip
    tables = {**TABLES, "table_4_repeatability": volumes}
    text = page.html(study, tables, readable(tables), [], [])
    glance = text[text.index('id="at-a-glance"') : text.index('id="failures"')]
    assert re.findall(r"<th(?: class=.name.)?>(.*?)</th>", glance) == [
        "tool", "excluded scans ↓", "normalised CR (%) ↓ x", "normalised CR (%) ↓ y", "seconds ↓",
    ]  # fmt: skip
    assert re.findall(r"<td(?: class=.name.)?>(.*?)</td>", glance) == ["mine", "1", "2", "8", "3.25"]


def test_the_headline_says_whom_an_attacker_finds(study: Study) -> None:
    head = pd.DataFrame([
        {"tool": "mine", "worst_attacker": "learned, recogniser", "auc": 0.853, "auc_low": 0.8, "auc_high": 0.9,
         "rank_1_percent": 12.0, "gallery": 40.0, "people": 117, "made_or_real_slices": 0.99},
        {"tool": "other", "made_or_real_slices": 0.5},
    ])  # fmt: skip
    tables = {"table_headline": head}
    text = page.html(study, tables, readable(tables), [], [])
    said = " ".join(parsed(text).texts)
    assert "tells the owner from one other person in 85 of 100 cases (AUC 0.85, 0.80 to 0.90" in said
    assert "puts the owner first in 12 % of galleries of 40 (117 people)" in said
    assert "0.85 (0.8 to 0.9)" in said and text.count("<li>") == 1
    assert "anonym" not in text.lower()


def test_slices_are_shown_as_they_are(study: Study) -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(6, 8)
    slices = {"a<b": {"mine": {"sagittal": picture, "axial": picture}}, "c": {"mine": {"sagittal": picture}}}
    parser = parsed(page.html(study, TABLES, readable(TABLES), [], [], slices))
    assert len(parser.pictures) == 3 and "#slices-before-and-after" in parser.links
    content = base64.b64decode(parser.pictures[0].partition("base64,")[2])
    assert np.array_equal(np.asarray(Image.open(BytesIO(content))), picture)
