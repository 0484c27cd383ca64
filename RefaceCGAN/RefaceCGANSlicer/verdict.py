"""The verdict on one refaced scan, from its report: green, amber or red, in words and a symbol and not in colour
alone; what was checked, against what, and what was not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

FACE_DISTANCE = "face_distance"
"""The check that needs a face recogniser; its value is None where no view shows both faces."""
SECOND_BRAIN = "brain_second_opinion_ml"
"""The check by another way of finding the brain; its value is the ml of that brain that would be changed."""
GREEN, AMBER, RED, INFO = "green", "amber", "red", "information"
SYMBOLS = {GREEN: "✔", AMBER: "!", RED: "✖", INFO: "i"}
COLOURS = {GREEN: "#2e9e44", AMBER: "#c77700", RED: "#d64541", INFO: "#3d7fc4"}
"""Of the symbol and the edge beside it: 3:1 or more against a light and a dark window (WCAG 2.1, 1.4.11)."""


@dataclass(frozen=True)
class Verdict:
    """level: GREEN, AMBER or RED, or INFO where no face is judged.  headline: one short sentence.  details:
    why, one line each.  checked: what was checked and against what, one line each.  unchecked: what was not."""

    level: str
    headline: str
    details: tuple[str, ...] = ()
    checked: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.level]

    @property
    def colour(self) -> str:
        return COLOURS[self.level]


def verdict_of(report: dict[str, Any]) -> Verdict:
    """The verdict on a scan whose report.json would hold `report` (see RefaceCGANLib.report).

    Red where a check failed, amber where the report carries a warning or a face was not seen, else green.
    """
    checks, defaced = report["checks"], report["already_defaced"]
    checked, unchecked = tuple(map(_marked, checks)), _unchecked(report)
    failed = tuple(sentence_of_check(entry) for entry in checks if not entry["passed"])
    if failed:
        return Verdict(RED, _("Not safe to share"), failed, checked, unchecked)
    doubts = (*report["warnings"], *filter(None, map(_doubt, checks)))
    rest = (_("The face had been removed before; what was emptied is filled."),) if defaced else _distances(checks)
    if doubts:
        return Verdict(AMBER, _("Look closely before you share it"), (*doubts, *rest), checked, unchecked)
    return Verdict(GREEN, _("All checks passed"), rest, checked, unchecked)


def _distances(checks: list[dict[str, Any]]) -> tuple[str, ...]:
    """What is known of the distance to the original face, which matters most and is not always measured."""
    measured = [entry for entry in checks if entry["name"] == FACE_DISTANCE]
    if not measured:
        return (_("Distance to the original face: not measured (Advanced says how)."),)
    return tuple(_distance(entry) for entry in measured if entry["value"] is not None)


def _unchecked(report: dict[str, Any]) -> tuple[str, ...]:
    """What nobody looked at, and what to do about it."""
    names = {entry["name"] for entry in report["checks"]}
    lines = []
    if FACE_DISTANCE not in names and not report["already_defaced"]:
        lines.append(
            _("The distance to the original face. Name a face detector and a face recogniser under Advanced.")
        )
    if SECOND_BRAIN not in names:
        lines.append(_("The brain by a second method: its mask is that of RefaceCGAN's own network alone."))
    lines.append(_("Names and dates in the scan's header, and the file's name."))
    return tuple(lines)


def _doubt(entry: dict[str, Any]) -> str:
    """Why a check that did not fail says nothing; empty where it does."""
    if entry["name"] != FACE_DISTANCE or entry["value"] is not None:
        return ""
    if entry["detected"][1]:
        return _("No distance to the original face: none was detected in the original.")
    return _("No face was detected in the refaced head.")


def _marked(entry: dict[str, Any]) -> str:
    """One check in words, with a symbol before them."""
    level = AMBER if entry["value"] is None else GREEN if entry["passed"] else RED
    return f"{SYMBOLS[level]} {sentence_of_check(entry)}"


def sentence_of_check(entry: dict[str, Any]) -> str:
    """One check in words: what was measured, and what it has to be where that is not plain."""
    known = SENTENCES.get(entry["name"])
    return known(entry) if known else _any_check(entry)


def _any_check(entry: dict[str, Any]) -> str:
    """A check that this version has no sentence for."""
    name, value = entry["name"].replace("_", " "), entry["value"]
    if value is None:
        return _("{name}: could not be measured").format(name=name)
    low, high = entry["limit"]
    return _("{name}: {value} (allowed: {low} to {high})").format(
        name=name, value=f"{value:g}", low=f"{low:g}", high=f"{high:g}"
    )


def _second_brain(entry: dict[str, Any]) -> str:
    if entry["value"] is None:
        return _("The brain by a second method: it could not be found")
    text = _("Brain by a second method in the face region: {ml} ml (at most {limit})")
    return text.format(ml=f"{entry['value']:.1f}", limit=f"{entry['limit'][1]:g}")


def _face_there(entry: dict[str, Any]) -> str:
    share = f"{100 * entry['value']:.0f}"
    if entry["passed"]:
        return _("A face is there: {share} % of an average face's tissue").format(share=share)
    return _("No plausible face: {share} % of an average face's tissue").format(share=share)


def _distance(entry: dict[str, Any]) -> str:
    if entry["value"] is None:
        return _("Distance to the original face: no view shows both faces")
    text = _("Distance to the original face: {distance} (a match is below {limit})")
    return text.format(distance=f"{entry['value']:.2f}", limit=f"{entry['limit'][0]:.2f}")


def _count(text: Callable[[], str]) -> Callable[[dict[str, Any]], str]:
    return lambda entry: text().format(count=f"{entry['value']:.0f}")


SENTENCES: dict[str, Callable[[dict[str, Any]], str]] = {
    "same_geometry": lambda entry: (
        _("Size, spacing and type are those of the original") if entry["passed"] else _("The geometry changed")
    ),
    "brain_voxels_changed": _count(lambda: _("Brain voxels changed: {count}")),
    SECOND_BRAIN: _second_brain,
    "voxels_changed_outside_face_region": _count(lambda: _("Voxels changed outside the face region: {count}")),
    "original_voxels_left": _count(lambda: _("Original voxels left in the face region: {count}")),
    "face_tissue_ratio": _face_there,
    "voxels_out_of_range": _count(lambda: _("Voxels outside the original's range of intensities: {count}")),
    FACE_DISTANCE: _distance,
}
"""By the name of a check: its sentence."""
