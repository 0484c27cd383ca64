"""The page of a run: one file that works offline, on which a person passes, fails and notes scan after scan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from .. import __version__
from ..volume.volume import atomic_path
from .coregistration import SHARPNESS
from .pictures import picture_name
from .plan import Outcome, Row
from .verdicts import Verdict, read_verdicts

BROWSER_ONLY = ("picture", "made", "verdict", "note")
"""What the page knows of a scan and the list of scans does not: pictures are large, and verdicts are in qc.tsv."""
CLOSE = 0.15
"""A check whose value lies within this share of its range from a limit is worth a look."""


def write(path: Path, outcomes: Sequence[Outcome], rows: Sequence[Row], verdicts: Path) -> list[dict[str, Any]]:
    """Write the page, and return its scans in their order, without pictures.

    outcomes: what is finished.  rows: of this run, of which what is withheld is listed.  verdicts: a qc.tsv of an
    earlier look, which is taken over where it exists.

    Raises InputError where the page cannot be written."""
    known = read_verdicts(verdicts)
    scans = [outcome for outcome in outcomes if outcome.facts.get("picture")]
    others = [outcome for outcome in outcomes if not outcome.facts.get("picture")]
    entries = sorted(
        (_entry(outcome, known) for outcome in scans), key=lambda entry: (-entry["risk"], entry["path"])
    )
    withheld = sorted((row for row in rows if row.action == "withhold"), key=lambda row: row.path)
    data = json.dumps(entries).replace("<", "\\u003c")
    text = (
        PAGE.replace("@VERSION@", escape(__version__))
        .replace("@WITHHELD@", _listing("Withheld: not in the output", withheld))
        .replace("@OTHERS@", _listing("Without a picture", [outcome.row for outcome in others]))
        .replace("@DATA@", data)
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return [{name: value for name, value in entry.items() if name not in BROWSER_ONLY} for entry in entries]


def write_originals(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """A private page in the folder of the originals' pictures: each beside the new face. Returns where it is.

    Raises InputError where it cannot be written."""
    cards = []
    for outcome in outcomes:
        name = picture_name(outcome.row.path)
        if (folder / name).is_file() and outcome.facts.get("picture"):
            cards.append(
                f'<h2>{escape(outcome.row.path)}</h2><img alt="original" src="{name}"><br>'
                f'<img alt="new face" src="{outcome.facts["picture"]}">'
            )
    page = folder / "originals.html"
    title = "PRIVATE: original faces above, new ones below. Do not give this folder away."
    text = f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>'
    with atomic_path(page) as temporary:
        temporary.write_text(f"{text}{''.join(cards)}</html>", encoding="utf-8", errors="backslashreplace")
    return page


def risk(outcome: Outcome) -> tuple[int, list[str]]:
    """How much a scan needs a look (0: least), and why."""
    reasons = list(outcome.row.warnings)
    level = 2 * len(reasons)
    facts = outcome.facts
    sharp = facts.get("sharpness")
    if sharp is not None and outcome.row.region_from != outcome.row.path and sharp < 1.3 * SHARPNESS:
        reasons.append(f"Its registration is not sharp ({sharp:.2f}, the least is {SHARPNESS:.2f}).")
        level += 1
    if facts.get("already_defaced"):
        reasons.append("It came already defaced: see whether something of the old face is left.")
        level += 1
    if facts.get("in_view", 1.0) < 0.9:
        reasons.append(f"{1 - facts['in_view']:.0%} of the face lies outside the field of view.")
        level += 1
    for check in facts.get("checks", ()):
        low, high = check["limit"]
        if not check["passed"]:
            reasons.append(f"The check {check['name']} failed.")
            level += 5
        elif high > low and min(check["value"] - low, high - check["value"]) < CLOSE * (high - low):
            reasons.append(f"The check {check['name']} is close to its limit ({check['value']:.2f}).")
            level += 1
    return level, reasons


def _entry(outcome: Outcome, known: dict[str, Verdict]) -> dict[str, Any]:
    level, reasons = risk(outcome)
    verdict, note = known.get(outcome.row.path, ("", ""))
    row = outcome.row
    return {
        "path": row.path, "subject": row.subject, "session": row.session, "action": row.action,
        "reason": row.reason, "risk": level, "look": reasons,
        "checks": [
            f"{check['name']}: {check['value']:g}{'' if check['passed'] else ' FAILED'}"
            for check in outcome.facts.get("checks", ())
        ],
        "picture": outcome.facts["picture"], "verdict": verdict, "note": note,
        "made": hashlib.sha256(outcome.facts["picture"].encode()).hexdigest()[:12],
    }  # fmt: skip


def _listing(title: str, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = "".join(
        f"<tr><td>{escape(row.path)}</td><td>{escape(row.action)}</td><td>{escape(row.reason)}</td></tr>"
        for row in rows
    )
    return f"<details><summary>{escape(title)} ({len(rows)})</summary><table>{lines}</table></details>"


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>RefaceCGAN: what needs a look</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.4 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 0 1rem 4rem; }
header { position: sticky; top: 0; background: Canvas; padding: .5rem 0; border-bottom: 1px solid GrayText; }
header > * { margin: .2rem .3rem .2rem 0; }
button, input, select { font: inherit; }
kbd { border: 1px solid GrayText; border-radius: 3px; padding: 0 .3em; }
article { border: 1px solid GrayText; border-left: .4rem solid GrayText; border-radius: 6px; margin: .8rem 0;
  padding: .5rem .8rem; }
article.current { outline: 3px solid Highlight; }
article.pass { border-left-color: #2a9d4a; } article.fail { border-left-color: #d33; }
article img { width: 100%; max-width: 800px; display: block; border-radius: 4px; background: #000; }
h2 { font-size: 1rem; margin: .2rem 0; overflow-wrap: anywhere; } p, ul { margin: .3rem 0; }
.look { color: #c60; } .small { font-size: .85rem; opacity: .8; overflow-wrap: anywhere; }
.note { width: 100%; box-sizing: border-box; }
table { border-collapse: collapse; }
td { border: 1px solid GrayText; padding: .2rem .4rem; overflow-wrap: anywhere; }
</style></head><body>
<header><strong>RefaceCGAN @VERSION@</strong> <span id="count"></span><br>
<input id="filter" type="search" placeholder="filter by name or reason" aria-label="filter">
<select id="show" aria-label="show"><option value="all">all</option><option value="open">no verdict yet</option>
<option value="look">worth a look</option><option value="pass">pass</option>
<option value="fail">fail</option></select>
<button id="export">Export qc.tsv</button><br>
<span class="small"><kbd>j</kbd> next <kbd>k</kbd> back <kbd>p</kbd> pass <kbd>f</kbd> fail <kbd>u</kbd> undo
<kbd>n</kbd> note <kbd>/</kbd> filter <kbd>e</kbd> export. Put qc.tsv into this folder, and the next run takes
it over.</span></header>
<p>The faces shown are generated. Scans with the greatest risk come first. The orange line is the border of the
face region.</p>
@WITHHELD@ @OTHERS@
<main id="scans"></main>
<script id="data" type="application/json">@DATA@</script>
<script>
"use strict";
const scans = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("scans"), filter = document.getElementById("filter");
const show = document.getElementById("show");
const STORE = "refacecgan:" + location.pathname;
let current = -1;
try {
  const kept = JSON.parse(localStorage.getItem(STORE) || "{}");
  for (const scan of scans) {
    const before = kept[scan.path];  // a verdict on another face than the one shown now is none
    if (before && before.made === scan.made) Object.assign(scan, before);
  }
} catch (error) { /* a browser may keep nothing for local files */ }
function save() {
  const kept = {};
  for (const scan of scans) if (scan.verdict || scan.note)
    kept[scan.path] = {verdict: scan.verdict, note: scan.note, made: scan.made};
  try { localStorage.setItem(STORE, JSON.stringify(kept)); } catch (error) { /* as above */ }
}
function element(name, text, kind) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
scans.forEach((scan, index) => {
  const card = element("article"), picture = element("img"), note = element("input", "", "note");
  picture.src = scan.picture; picture.loading = "lazy"; picture.alt = "The new face of " + scan.path;
  card.append(element("h2", scan.path), element("p", scan.action + ": " + scan.reason), picture);
  if (scan.look.length) {
    const look = element("ul", "", "look");
    scan.look.forEach(text => look.append(element("li", text)));
    card.append(look);
  }
  card.append(element("p", scan.checks.join("; "), "small"));
  for (const verdict of ["pass", "fail"]) {
    const button = element("button", verdict);
    button.onclick = event => { event.stopPropagation(); go(index); judge(verdict); };
    card.append(button, " ");
  }
  note.value = scan.note; note.placeholder = "note";
  note.oninput = () => { scan.note = note.value.replace(/[\\t\\r\\n]+/g, " "); save(); };
  note.onkeydown = event => {
    event.stopPropagation();
    if (event.key === "Enter" || event.key === "Escape") note.blur();
  };
  card.append(note);
  card.onclick = () => go(index);
  scan.card = card; scan.noteField = note;
  list.append(card);
});
function visible(scan) {
  const text = (scan.path + " " + scan.action + " " + scan.reason + " " + scan.look.join(" ")).toLowerCase();
  const kind = {all: true, open: !scan.verdict, look: scan.look.length > 0, pass: scan.verdict === "pass",
    fail: scan.verdict === "fail"}[show.value];
  return kind && text.includes(filter.value.trim().toLowerCase());
}
function refresh() {
  let shown = 0, judged = 0;
  scans.forEach((scan, index) => {
    const seen = visible(scan);
    shown += seen; judged += Boolean(scan.verdict);
    scan.card.hidden = !seen;
    scan.card.className = scan.verdict + (index === current ? " current" : "");
  });
  document.getElementById("count").textContent =
    judged + " of " + scans.length + " judged, " + shown + " shown";
}
function go(index) {
  current = index; refresh();
  if (index >= 0) scans[index].card.scrollIntoView({block: "nearest"});
}
function move(step) {
  for (let at = current + step; at >= 0 && at < scans.length; at += step)
    if (!scans[at].card.hidden) return go(at);
}
function judge(verdict) {
  if (current < 0) return;
  scans[current].verdict = verdict; save();
  const was = current; refresh();
  if (verdict) move(1);
  if (current === was) refresh();
}
function table() {
  const lines = scans.map(scan => [scan.path, scan.verdict || "n/a", scan.note || "n/a"].join("\\t"));
  return ["path\\tverdict\\tnote", ...lines].join("\\n") + "\\n";
}
function save_table() {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([table()], {type: "text/tab-separated-values"}));
  link.download = "qc.tsv"; link.click();
}
document.getElementById("export").onclick = save_table;
filter.oninput = refresh; show.onchange = refresh;
filter.onkeydown = event => { event.stopPropagation(); if (event.key === "Escape") filter.blur(); };
document.onkeydown = event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target === show) return;
  const keys = {j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
    p: () => judge("pass"), f: () => judge("fail"), u: () => judge(""), e: save_table,
    n: () => { if (current >= 0) scans[current].noteField.focus(); }, "/": () => filter.focus()};
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
};
refresh(); move(1);
</script></body></html>
"""
