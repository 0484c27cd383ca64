"""The verdict on one refaced scan, from its report: green, amber or red, in words and a symbol and not in colour
alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

FACE_DISTANCE = "face_distance"
"""The check that needs a face recogniser; its value is None where no view shows both faces."""
GREEN, AMBER, RED, INFO = "green", "amber", "red", "information"
SYMBOLS = {GREEN: "✔", AMBER: "!", RED: "✖", INFO: "i"}
COLOURS = {GREEN: "#2e9e44", AMBER: "#c77700", RED: "#d64541", INFO: "#3d7fc4"}
"""Of the symbol and the edge beside it: 3:1 or more against a light and a dark window (WCAG 2.1, 1.4.11)."""


@dataclass(frozen=True)
class Verdict:
    """level: GREEN, AMBER or RED, or INFO where no face is judged.  headline: one short sentence.  details:
    why, one line each."""

    level: str
    headline: str
    details: tuple[str, ...] = ()

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
    failed = [entry for entry in report["checks"] if not entry["passed"]]
    details = tuple(_sentence(entry) for entry in (failed or report["checks"]))
    if failed:
        return Verdict(RED, _("Not safe to share"), tuple(filter(None, details)))
    if report["already_defaced"]:
        details += (_("The face had been removed before; what was emptied is filled."),)
    warnings = (*report["warnings"], *filter(None, map(_doubt, report["checks"])))
    if warnings:
        return Verdict(AMBER, _("Look closely before you share it"), (*warnings, *filter(None, details)))
    return Verdict(GREEN, _("All checks passed"), tuple(filter(None, details)))


def _doubt(entry: dict[str, Any]) -> str:
    """Why a check that did not fail says nothing; empty where it does."""
    if entry["name"] != FACE_DISTANCE or entry["value"] is not None:
        return ""
    if entry["detected"][1]:
        return _("No distance to the original face: none was detected in the original.")
    return _("No face was detected in the refaced head.")


def _sentence(entry: dict[str, Any]) -> str:
    """One check in words; nothing for a check that passed and says little."""
    value, passed = entry["value"], entry["passed"]
    match entry["name"]:
        case "brain_voxels_changed":
            return _("Brain voxels changed: {count}").format(count=f"{value:.0f}")
        case "original_voxels_left":
            return _("Original voxels left in the face region: {count}").format(count=f"{value:.0f}")
        case "face_tissue_ratio":
            share = f"{100 * value:.0f}"
            if passed:
                return _("A face is there: {share} % of an average face's tissue").format(share=share)
            return _("No plausible face: {share} % of an average face's tissue").format(share=share)
        case "face_distance" if value is None:
            return ""
        case "face_distance":
            text = _("Distance to the original face: {distance} (a match is below {limit})")
            return text.format(distance=f"{value:.2f}", limit=f"{entry['limit'][0]:.2f}")
        case name:
            return "" if passed else _("Check failed: {name}").format(name=name.replace("_", " "))
