"""The BIDS App: refacecgan-bids BIDS_DIR OUTPUT_DIR participant|group, with the options that BIDS Apps share.

`participant` refaces the people asked for (all by default); several such runs with other labels may follow each
other on one output. `group` makes the page over all of them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..app import command_line as cli
from ..errors import InputError

if TYPE_CHECKING:
    from .runner import Settings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the App and return its exit status, as `refacecgan` does."""
    return cli.main(argv, parser())


def parser() -> argparse.ArgumentParser:
    """The parser of the App."""
    from .command import add_options

    made = cli.Parser(
        prog="refacecgan-bids",
        description="BIDS App: gives everybody in a data set a new face, the same in every series and visit.",
        epilog="Exit status: as of refacecgan; 3 if files were withheld, which are listed.",
        allow_abbrev=False,
    )
    made.add_argument("input", type=Path, metavar="BIDS_DIR", help="BIDS data set")
    made.add_argument("output", type=Path, metavar="OUTPUT_DIR", help="new folder, or an earlier run's to go on")
    made.add_argument("level", choices=("participant", "group"), help="people one by one, or the page over all")
    made.add_argument("--participant-label", nargs="+", default=[], metavar="LABEL", help="with or without sub-")
    made.add_argument("--session-label", nargs="+", default=[], metavar="LABEL", help="with or without ses-")
    made.add_argument(
        "--bids-filter-file", type=Path, metavar="JSON",
        help="which scans to do: {name: {entity: value, ...}, ...}; a scan is done that fits one of them",
    )  # fmt: skip
    made.add_argument("--skip-bids-validation", action="store_true", help="accepted; this App never validates")
    add_options(made)
    cli.add_engine(made, "1 for each process")
    made.set_defaults(run=_run, interruptible=True)
    return made


def _run(args: argparse.Namespace, outputs: object) -> cli.Said:
    from .command import carry_out
    from .runner import group

    settings = settings_of(args)
    if args.level == "group":
        return [f"Wrote {group(settings.source, settings.output)}: the page to look at"], []
    return carry_out(settings, args.progress, cli.say)


def settings_of(args: argparse.Namespace) -> Settings:
    """A call as the runner takes it. Raises InputError for labels that are not there and unreadable filters."""
    from . import command

    root = Path(os.path.abspath(args.input))
    subjects = [label.removeprefix("sub-") for label in args.participant_label]
    sessions = [label.removeprefix("ses-") for label in args.session_label]
    for label in subjects:
        if root.is_dir() and not (root / f"sub-{label}").is_dir():
            raise InputError(f"{args.input} has no participant {label}; give labels of folders sub-LABEL.")
    settings = command.settings_of(args, subjects, sessions)
    filters = read_filters(args.bids_filter_file) if args.bids_filter_file else ()
    return replace(settings, wanted=replace(settings.wanted, filters=filters))


def read_filters(path: Path) -> tuple[dict[str, Any], ...]:
    """The filters of a BIDS filter file, as fMRIPrep knows it. Raises InputError where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not all(isinstance(one, dict) for one in content.values()):
            raise ValueError
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except ValueError as error:
        raise InputError(f'{path} is no BIDS filter file; give JSON as {{"t1w": {{"suffix": "T1w"}}}}.') from error
    return tuple(content.values())
