"""The study: `refacecgan evaluate CONFIG.toml` (Molchanova et al. 2023, section 2.3 and 2.4, as one command).

What is measured on one scan stands in `stages`, and is done for several scans at once; here it becomes one table,
what takes a whole cohort is added (identification, pairs, thresholds), and all tables, figures and the page are
written. In the output folder: index.html, table.csv, failures.csv, tables/, figures/, and work/, from which a
second run goes on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import InputError
from ..volume.files import atomic_path
from . import process_pool as pool
from .cohort import Looks, pictures, rows_of_cohort, seeds
from .headline import attacker_tables, headline
from .measurements import ORIGINAL
from .stages import SLICES, Failure, Measured, Row, Scan, first, measure, require_models
from .store import code, stamp
from .study_config import Study, read
from .tools import Tool

if TYPE_CHECKING:
    import pandas as pd

Progress = Callable[[str, float], None]
"""Called with what was done last and how much of the whole is done (0..1)."""

DONE = "done.json"
"""In the work folder: what the results beside it were made of."""
MEASURED = 0.95
"""How much of a study is done when all scans are measured."""


class Outcome(NamedTuple):
    """What a study came to: its page, how many scans and tools it has, and the sentences for the user."""

    page: Path
    scans: int
    tools: int
    warnings: list[str]


def evaluate(config: Path, progress: Progress | None = None, output: Path | None = None) -> Outcome:
    """Do the study that a configuration describes (see `config`), or what is left of it, and write its results.

    output: in place of the configured folder. A scan or tool that fails is listed in failures.csv and on the page,
    and the rest goes on. Raises InputError for an unusable configuration, for a program that is missing, and where
    nothing at all could be measured."""
    study = read(Path(config))
    if output:
        study = replace(study, output=Path(output).resolve())
    try:
        study.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{study.output} cannot be made ({error.strerror}); choose another output.") from error
    say = progress or (lambda stage, fraction: None)
    say("reading", 0.0)
    page, done = study.output / "index.html", study.output / "work" / DONE
    state = _state(study)
    if page.is_file() and done.is_file() and done.read_text() == state:
        say("done", 1.0)
        return Outcome(page, len(study.originals), len(study.tools), [])
    done.unlink(missing_ok=True)
    measured = measure_all(study, say)
    rows, failures = measured.rows + given_volumes(study), measured.failures
    if not rows:
        raise InputError(f"{study.path}: nothing could be measured; the first reason: {failures[0][3]}")
    say("comparing faces", MEASURED)
    looks = Looks(study)
    rows += rows_of_cohort(study, looks)
    say("tables and figures", MEASURED + 0.01)
    write_results(study, tidy_table(study, rows), looks, failures)
    warnings = []
    if not failures:
        _write_text(state, done)
    else:
        pairs = {failure[:2] for failure in failures}
        warnings.append(f"Of {len(pairs)} pairs of scan and tool a step failed; failures.csv says which and why.")
    say("done", 1.0)
    return Outcome(page, len(study.originals), len(study.tools), warnings)


def _state(study: Study) -> str:
    """All that the results depend on: while it is the same, what was written stands."""
    scans = [(name in study.originals, Scan(study, name)) for name in study.scans]
    places = [(scan.kept if own else scan.look_place(None)).name for own, scan in scans]
    names = [study.path.name, study.workers, list(study.gallery), list(study.training), sorted(study.volumetry)]
    pairs = [list(study.pairs), study.pair_seeds]
    numbers = [study.false_match_rate, study.limits, study.thresholds, study.epochs]
    given = {name: stamp(path) for name, path in study.volumes.items()}
    modules = sorted(f"evaluation/{path.stem}" for path in Path(__file__).parent.glob("*.py"))
    return json.dumps([places, names, pairs, numbers, given, code(*modules)])


# --- what is measured on each scan ------------------------------------------------------------------------


def measure_all(study: Study, say: Progress) -> Measured:
    """Everything of `stages`, on all scans, in several processes; what the store has is not done again."""
    everything = Measured()
    tasks: list[tuple[Study, str]] = []
    work = 0.0
    for name in study.scans:
        scan = Scan(study, name)
        if name in study.originals and scan.kept.is_file():
            everything.rows.extend(scan.recall().rows)
        elif name in study.originals:
            for tool in scan.tools:
                _require(scan, tool)
            tasks.append((study, name))
            work += scan.work()
        elif not (scan.pairs_kept if name in study.pairs else scan.look_place(None).is_dir()):
            tasks.append((study, name))
            work += scan.look_work()
    if tasks:
        require_models(study)
    tasks.sort(key=lambda task: (task[1] not in study.volumetry, task[1] not in study.originals))  # longest first
    done = 0.0

    def said(what: str, share: float) -> None:
        nonlocal done
        done += share
        say(what, MEASURED * min(1.0, done / work))

    def finished(task: tuple[Study, str], result: Measured | None, reason: str | None) -> None:
        if result:
            everything.rows.extend(result.rows)
            everything.failures.extend(result.failures)
        else:
            everything.failures.append((task[1], "all", "process", reason or ""))

    pool.run(measure, tasks, study.workers, said, finished)
    return everything


def _require(scan: Scan, tool: Tool) -> None:
    """Raise InputError for a program that is missing although it has something to do."""
    if not scan.output_place(tool, first(tool)).is_dir():
        tool.require()


def given_volumes(study: Study) -> list[Row]:
    """The volumes that were measured elsewhere. Raises InputError for a file that is no good."""
    from .volumetry import read_volumes_csv

    known = {ORIGINAL, *(tool.name for tool in study.tools)}
    return [
        (row["scan"], row["tool"], "volume_ml", f"{name}/{row['region']}", float(row["ml"]))
        for name, path in study.volumes.items()
        for row in read_volumes_csv(path).to_dict("records")
        if row["tool"] in known and row["scan"] in study.originals
    ]


# --- what is written --------------------------------------------------------------------------------------


def tidy_table(study: Study, rows: list[Row]) -> pd.DataFrame:
    """The tidy table: the originals first, then the tools in the order of the configuration."""
    import pandas as pd

    order = [ORIGINAL, *(tool.name for tool in study.tools)]
    table = pd.DataFrame(rows, columns=["scan", "tool", "measure", "part", "value"])
    place = table["tool"].map(order.index)
    return table.assign(place=place).sort_values(
        ["place", "measure", "part", "scan"], kind="stable", ignore_index=True
    ).drop(columns="place")  # fmt: skip


def write_results(study: Study, table: pd.DataFrame, looks: Looks, failures: list[Failure]) -> None:
    """All tables, figures and the page. Those of an earlier run go."""
    from . import study_page as page
    from .figures import draw_all
    from .tables import readable

    tables = _tables(study, table, looks)
    texts = readable(tables)
    for folder, pattern in (("tables", "table_*"), ("figures", "figure_*")):
        (study.output / folder).mkdir(exist_ok=True)
        for old in (study.output / folder).glob(pattern):
            old.unlink()
    _write_csv(table, study.output / "table.csv")
    with atomic_path(study.output / "failures.csv") as temporary, temporary.open("w", newline="") as file:
        csv.writer(file).writerows([("scan", "tool", "stage", "reason"), *failures])
    for name, content in tables.items():
        _write_csv(content, study.output / "tables" / f"{name}.csv")
        _write_text(markdown(texts[name]), study.output / "tables" / f"{name}.md")
    renders = pictures(study, looks) if study.detector else {}
    drawn = draw_all(table, study.output / "figures", _of_tools(tables), renders)
    shown = slices_shown(study)
    _write_text(page.html(study, tables, texts, drawn, failures, shown), study.output / "index.html")


def _tables(study: Study, table: pd.DataFrame, looks: Looks) -> dict[str, pd.DataFrame]:
    import pandas as pd

    from .statistics import tables as tables_of

    epochs = [(tool, *pair) for tool, pair in study.epochs.items()]
    tables = tables_of(
        table, limits=study.limits, thresholds=study.thresholds, false_match_rate=study.false_match_rate,
        settings=pd.DataFrame(epochs, columns=["tool", "epoch", "dropout"]) if epochs else None,
    )  # fmt: skip
    if "table_5_identifiability" in tables:
        identity = tables["table_5_identifiability"]
        by_seed = seeds(study, looks, dict(zip(identity["embedder"], identity["threshold"], strict=True)))
        if len(by_seed):
            tables["table_seeds"] = by_seed
    tables |= attacker_tables(study, looks)
    head = headline(table, tables, study.tools)
    return {"table_headline": head, **tables} if len(head.columns) > 1 else tables


def slices_shown(study: Study) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """For the page: scan -> tool -> plane -> original and output side by side; what failed is not there."""
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for name in study.originals:
        scan = Scan(study, name)
        for tool in study.tools:
            file = scan.slices_place(tool) / SLICES
            if file.is_file():
                with np.load(file) as planes:
                    pairs = {plane: planes[plane] for plane in planes.files}
                if pairs:
                    found.setdefault(name, {})[tool.name] = pairs
    return found


def _of_tools(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The tables to draw: the identification of the originals' re-scans stands in the table alone."""
    name = "table_5_identifiability"
    if name not in tables:
        return tables
    return tables | {name: tables[name][tables[name]["tool"] != ORIGINAL]}


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def _write_text(text: str, path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def markdown(table: pd.DataFrame) -> str:
    """A table of texts as Markdown."""
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns), *table.astype(str).values.tolist()]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |\n" for line in lines)
