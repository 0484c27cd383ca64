"""The page of a run: what comes first, and how it answers keys, filter and export in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from RefaceCGANLib.dataset import qc_page
from RefaceCGANLib.dataset.plan import Outcome, Row
from RefaceCGANLib.dataset.verdicts import read_verdicts

PICTURE = "data:image/jpeg;base64,/9j/4AAQSkZJRgABAQEASABIAAD/2wBDAP//////////////////////////////////////////////"
CHECK = {"name": "face_tissue_ratio", "value": 1.0, "limit": [0.5, 1.7], "passed": True}


def outcome(path: str, *warnings: str, **facts: object) -> Outcome:
    row = Row(path, "1", "", "reface", "T1w; face region of its own.", path, warnings)
    return Outcome(row, (path,), {"picture": PICTURE, "checks": [CHECK], **facts})


SCANS = [
    outcome("sub-1/a_T1w.nii.gz"),
    outcome("sub-1/b_T2w.nii.gz", "Could not be registered."),
    outcome("sub-1/c_</script><b>.nii.gz", in_view=0.7),
]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page of three scans, of which one was judged before, with one file withheld."""
    (tmp_path / "qc.tsv").write_text("path\tverdict\tnote\nsub-1/a_T1w.nii.gz\tfail\tnose twice\n")
    rows = [Row("sub-2/broken.nii.gz", "2", "", "withhold", "Is cut short.")]
    qc_page.write(tmp_path / "index.html", SCANS, rows, tmp_path / "qc.tsv")
    return tmp_path / "index.html"


def test_what_needs_a_look_comes_first_with_the_reason(page: Path):
    text = page.read_text()
    entries = json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL)[1])
    assert [entry["path"] for entry in entries] == [SCANS[at].row.path for at in (1, 2, 0)]
    assert entries[0]["look"] == ["Could not be registered."]
    assert entries[1]["look"] == ["30% of the face lies outside the field of view."]
    assert (entries[2]["verdict"], entries[2]["note"]) == ("fail", "nose twice")
    assert "sub-2/broken.nii.gz" in text and "Is cut short." in text


def test_the_page_needs_nothing_but_itself(page: Path):
    text = page.read_text()
    assert not re.search(r'(src|href)="(?!data:)', text) and "http" not in text
    assert "<b>.nii.gz" not in text


def test_a_check_near_its_limit_is_worth_a_look():
    near = outcome("a", checks=[{**CHECK, "value": 0.55}])
    level, reasons = qc_page.risk(near)
    assert level == 1 and "close to its limit" in reasons[0]
    assert qc_page.risk(outcome("a")) == (0, [])


def test_a_verdict_that_is_no_verdict_is_none(tmp_path: Path):
    (tmp_path / "qc.tsv").write_text("path\tverdict\tnote\na\tperhaps\tn/a\nb\tpass\t\n")
    assert read_verdicts(tmp_path / "qc.tsv") == {"a": ("", ""), "b": ("pass", "")}
    (tmp_path / "qc.tsv").write_bytes(b"\xff\x00\n")
    assert read_verdicts(tmp_path / "qc.tsv") == {}


KEPT_BEFORE = """
<script>
localStorage.setItem("refacecgan:" + location.pathname, JSON.stringify({
  "sub-1/b_T2w.nii.gz": {verdict: "pass", note: "of an older face", made: "0123456789ab"}}));
</script>
"""
STEPS = """
<script>
const said = {}, press = key => document.dispatchEvent(new KeyboardEvent("keydown", {key: key, bubbles: true}));
const shown = () => scans.filter(scan => !scan.card.hidden).map(scan => scan.path.slice(6, 7)).join("");
said.order = shown();
said.begun = scans.map(scan => scan.verdict);
said.pictures = document.querySelectorAll("article img").length;
press("p");                                       // passes the first and goes on to the second
press("n");
said.focus = document.activeElement.placeholder;
document.activeElement.value = "look\\there";
document.activeElement.dispatchEvent(new Event("input"));
document.activeElement.blur();
press("f"); press("k"); press("k"); press("u");    // fails the second, back to the first, takes its verdict back
said.verdicts = scans.map(scan => scan.verdict);
filter.value = "REGISTERED"; filter.dispatchEvent(new Event("input"));
said.filtered = shown();
filter.value = ""; filter.dispatchEvent(new Event("input"));
show.value = "open"; show.dispatchEvent(new Event("change"));
said.open = shown();
said.count = document.getElementById("count").textContent;
said.kept = JSON.parse(localStorage.getItem(STORE));
URL.createObjectURL = blob => { blob.text().then(text => {
  said.table = text;
  document.body.insertAdjacentHTML("beforeend", "<pre id=said></pre>");
  document.getElementById("said").textContent = JSON.stringify(said);
}); return "#"; };
press("e");
</script></body>
"""


def test_a_verdict_kept_by_the_browser_is_on_the_face_it_was_given_to(page: Path, tmp_path: Path):
    """Another face of the same scan has no verdict yet."""
    other = [outcome("sub-1/a_T1w.nii.gz", picture=PICTURE + "x"), *SCANS[1:]]
    made = []
    for scans in (SCANS, other):
        qc_page.write(tmp_path / "index.html", scans, [], tmp_path / "none.tsv")
        text = (tmp_path / "index.html").read_text()
        entries = json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.DOTALL)[1])
        made.append({entry["path"]: entry["made"] for entry in entries})
    assert [path for path in made[0] if made[0][path] != made[1][path]] == ["sub-1/a_T1w.nii.gz"]


def test_keys_filter_and_export_in_chromium(page: Path, tmp_path: Path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium is installed")
    text = page.read_text().replace("</body>", STEPS)
    page.write_text(text.replace('<script id="data"', KEPT_BEFORE + '<script id="data"'))
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=3000", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    said = json.loads(html.unescape(re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert said["order"] == "bca" and said["pictures"] == 3
    assert said["begun"] == ["", "", "fail"]
    assert said["focus"] == "note"
    assert said["verdicts"] == ["", "fail", "fail"]
    assert said["filtered"] == "b"
    assert said["open"] == "b"
    assert said["count"].startswith("2 of 3 judged, 1 shown")
    kept = said["kept"]["sub-1/c_</script><b>.nii.gz"]
    assert (kept["verdict"], kept["note"]) == ("fail", "look here") and len(kept["made"]) == 12
    exported = tmp_path / "exported.tsv"
    exported.write_text(said["table"])
    assert read_verdicts(exported) == {
        "sub-1/b_T2w.nii.gz": ("", ""),
        "sub-1/c_</script><b>.nii.gz": ("fail", "look here"),
        "sub-1/a_T1w.nii.gz": ("fail", "nose twice"),
    }
