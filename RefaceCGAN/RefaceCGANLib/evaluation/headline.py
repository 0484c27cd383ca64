"""The headline: who finds the owners, what gives the new face away, and what it costs the brain; one row per tool.

Attackers and made-or-real need the whole cohort, so they are computed here, from what the stages have stored.
Each number has an interval by bootstrap over people. The row of the worst attacker names it: a tool is as safe
as its worst attacker says, and no number here proves that there is none better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .attackers import Attack
from .cohort import Looks
from .face_recognition import Look
from .made_or_real import Separability
from .measure import Cohort, Seen, slices
from .measurements import bootstrapped, known, rows_of
from .skin_shape import rays
from .stages import NUMBERS, SKIN, Scan, read_numbers
from .study_config import Study
from .tissue_realism import Patches
from .tools import Tool

if TYPE_CHECKING:
    import pandas as pd

EVERYBODY, STUDY = "all", "originals of the study"
"""Whom an attack is judged on: everybody with outputs, or the study's own originals alone (a model may have been
trained on the others)."""


def attacker_tables(study: Study, looks: Looks) -> dict[str, pd.DataFrame]:
    """table_attackers: each attacker against each tool and embedder.  table_made_or_real: slices and renders."""
    attacks: list[dict[str, object]] = []
    rows: list[dict[str, object]] = []
    scans = {name: Scan(study, name) for name in study.scans}
    for tool in study.tools:
        for embedder in study.embedders:
            cohort = cohort_of(study, scans, tool, embedder)
            if cohort is None:
                continue
            for judged, people in ((EVERYBODY, None), (STUDY, set(study.originals))):
                if people is not None and not study.pairs:
                    continue
                attacks += [_attack_row(tool, embedder, judged, attack) for attack in cohort.attacks(people)]
            rows.append(_separability_row(tool, cohort.renders(), f"renders, {embedder}"))
        found = tissue_found(study, scans, tool)
        rows += [_separability_row(tool, one, one.name) for one in slices(found)]
    tables = {"table_attackers": _frame(attacks), "table_made_or_real": _frame(rows)}
    return {name: table for name, table in tables.items() if len(table)}


def cohort_of(study: Study, scans: Mapping[str, Scan], tool: Tool, embedder: str) -> Cohort | None:
    """What attackers see of a tool's outputs; None where there are no two people."""
    originals = {name: seen for name in study.gallery if (seen := _seen(scans[name], None, None, embedder))}
    outputs: dict[str, list[Seen | None]] = {}
    for name in [*study.originals, *study.pairs]:
        if name not in originals:
            continue
        seeds: list[int | None] = [*tool.seeds] or [None]
        if name in study.pairs:
            seeds = scans[name].pair_seeds(tool)
        found = [_seen(scans[name], tool, seed, embedder) for seed in seeds]
        if any(found):
            outputs[name] = found
    return Cohort.of(outputs, originals) if len(outputs) > 1 else None


def _seen(scan: Scan, tool: Tool | None, seed: int | None, embedder: str) -> Seen | None:
    look, skin = scan.look_place(tool, seed) / f"{embedder}.npz", scan.skin_place(tool, seed) / SKIN
    if not look.is_file():
        return None
    distances = np.load(skin) if skin.is_file() else np.full(len(rays()), np.nan, np.float32)
    return Seen(Look.read(look), distances)


def tissue_found(
    study: Study, scans: Mapping[str, Scan], tool: Tool
) -> dict[str, tuple[Patches, Patches, dict[str, float]]]:
    """Person -> patches of the original, of the output, and texture ratios; what failed is not there."""
    found = {}
    for name in [*study.originals, *study.pairs]:
        place = scans[name].tissue_place(tool)
        if place.is_dir():
            real, made = (Patches.read(place / f"{part}.npz") for part in ("real", "made"))
            found[name] = real, made, read_numbers(place / NUMBERS)
    return found


def headline(table: pd.DataFrame, tables: Mapping[str, pd.DataFrame], tools: Iterable[Tool]) -> pd.DataFrame:
    """One row per tool: the worst attacker over all people, made-or-real in slices and renders (the larger where
    there are several), texture, brain changed (ml; the largest mean over the masks), skin left, volumes, time.

    table: the tidy one.  tables: of `attacker_tables` and `statistics.tables`."""
    rows = []
    for tool in tools:
        row: dict[str, object] = {"tool": tool.name}
        attacks = _of(tables, "table_attackers", tool)
        if len(attacks):
            attacks = attacks[attacks["judged"] == EVERYBODY]
        most = _most(attacks, "found")
        if most:
            way = " (least alike)" if most["reversed"] else ""
            row["worst_attacker"] = f"{most['attacker']}{way}"
            row |= _interval("auc", most["found"], most["found_low"], most["found_high"])
            row |= {name: most[name] for name in ("rank_1_percent", "gallery", "people")}
        found = _of(tables, "table_made_or_real", tool)
        for kind in ("slices", "renders"):
            most = _most(found[found["where"].str.startswith(kind)] if len(found) else found, "auc")
            if most:
                row |= _interval(f"made_or_real_{kind}", most["auc"], most["auc_low"], most["auc_high"])
        for name in ("fine_texture", "local_contrast", "skin_left_percent"):
            row |= _interval(name, *_mean_of(table, name, tool))
        row |= _brain(table, tool)
        for name, column in (("table_4_repeatability", "cr_percent"), ("table_7_dice", "dice")):
            part = _of(tables, name, tool)
            if len(part):
                row[f"n{column}" if column == "cr_percent" else column] = float(part[column].mean())
        row |= _interval("seconds", *_mean_of(table, "time_s", tool))
        rows.append(row)
    frame = _frame(rows)
    return frame.dropna(axis=1, how="all") if len(frame) else frame


def _most(rows: pd.DataFrame, column: str) -> dict[str, Any]:
    """The row with the largest value, {} where there is none."""
    if not len(rows) or rows[column].isna().all():
        return {}
    found: dict[str, Any] = rows.to_dict("records")[int(np.nanargmax(rows[column].to_numpy(float)))]  # type: ignore[assignment]
    return found


def _interval(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def _brain(table: pd.DataFrame, tool: Tool) -> dict[str, object]:
    """Brain changed in ml: by the mask in which it is most, the mean over scans."""
    rows = rows_of(table, "brain_changed_ml", "mask")
    rows = rows[rows["tool"] == tool.name]
    if rows.empty:
        return {}
    means = rows.groupby("mask")["value"].mean()
    mask = str(means.idxmax())
    values = bootstrapped(rows.loc[rows["mask"] == mask, "value"])
    return {**_interval("brain_changed_ml", *values), "by_mask": mask}


def _mean_of(table: pd.DataFrame, measure: str, tool: Tool) -> tuple[float, float, float]:
    rows = table[(table["measure"] == measure) & (table["tool"] == tool.name)]
    return bootstrapped(known(rows["value"]))


def _of(tables: Mapping[str, pd.DataFrame], name: str, tool: Tool) -> pd.DataFrame:
    import pandas as pd

    found = tables.get(name)
    return pd.DataFrame() if found is None else found[found["tool"] == tool.name]


def _attack_row(tool: Tool, embedder: str, judged: str, attack: Attack) -> dict[str, object]:
    return {
        "tool": tool.name,
        "attacker": attack.name,
        "embedder": embedder,
        "judged": judged,
        "people": attack.people,
        "seeds": attack.seeds,
        "gallery": attack.gallery,
        **_interval("auc", attack.auc, attack.low, attack.high),
        **_interval("found", attack.found, attack.found_low, attack.found_high),
        "rank_1_percent": attack.rank_1_percent,
        "reversed": attack.reversed,
    }


def _separability_row(tool: Tool, found: Separability, where: str) -> dict[str, object]:
    return {
        "tool": tool.name, "where": where, "people": found.people, "auc": found.auc, "auc_low": found.low,
        "auc_high": found.high,
    }  # fmt: skip


def _frame(rows: list[dict[str, object]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)
