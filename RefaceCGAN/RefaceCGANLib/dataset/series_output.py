"""Output of one series: refaced, defaced, emptied or copied, with its sidecar, and the facts for log and page."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from ..anatomy.location import Anatomy
from ..checks import Check
from ..errors import CheckError, InputError
from ..report import VISUAL_FEATURES, write_json
from ..volume.volume import Volume, atomic_path
from .bids import sidecars_of, target_name
from .discovery import Series
from .plan import Action, Outcome, Row
from .timeseries import TimeSeries

if TYPE_CHECKING:
    from .session_work import Decision, _Session

FACE = "face replaced by a generated one"
EMPTY = "face region emptied"


def write(session: _Session, one: Series, decision: Decision, row: Row) -> Outcome:
    """Do what was decided and return what came of it.

    Where a new face fails a check, the scan is defaced instead, with a warning. Raises RefaceError where it cannot
    be written or fails a check all the same; no output exists then."""
    for name in one.files:
        _folder(session.output / name)
    facts: dict[str, Any] = dict(decision.facts)
    if row.action == "copy":
        return Outcome(row, _copy(session, one), facts, one.files, one.files)
    assert decision.anatomy is not None
    target = target_of(session, one, row.action)
    if row.action == "empty":
        return Outcome(row, _empty(session, one, decision.anatomy, target), facts, (target,), one.files)
    if session.is_timeseries(one):
        outputs, facts = _timeseries(session, one, decision.anatomy, row, facts, target)
        return Outcome(row, outputs, facts, (target,), one.files)
    before = session.volume(one)
    after, checks = None, None
    if row.action == "reface":
        try:
            after, checks = _refaced(session, before, decision.anatomy)
        except CheckError as error:
            if decision.anatomy.already_defaced:
                raise
            warning = f"Defaced instead of refaced: {error}".replace(
                " Nothing was written", " No face was written"
            )
            row = replace(row, action="deface", warnings=(*row.warnings, warning))
    if after is None or checks is None:
        after, checks = _defaced(session, one, before, decision.anatomy)
    facts["checks"] = [entry.report() for entry in checks]
    facts["already_defaced"] = decision.anatomy.already_defaced
    if session.job.options.pictures:
        from .pictures import thumbnail

        facts["picture"] = thumbnail(after, decision.anatomy)
        if session.job.options.originals:
            _picture_of_original(session, one, before, decision.anatomy)
    region = decision.anatomy
    outputs = _masks(session, one, before, region)
    what = FACE if row.action == "reface" else EMPTY
    if one.kind == "dicom":
        from ..volume.dicom_output import identifying, write_series

        sources = [session.input / name for name in one.files]
        places = [session.output / name for name in one.files]
        write_series(sources, places, before, after, session.job.uid_key, what)
        facts["identifying"] = identifying(places[0])
        return Outcome(row, (*outputs, *one.files), facts, one.files, one.files)
    target = target_of(session, one, row.action)
    outputs += _beside(session, one, what, target)
    after.write(session.output / target)
    return Outcome(row, (*outputs, target), facts, (target,), one.files)


def target_of(session: _Session, one: Series, action: Action) -> str:
    """Where a series goes, relative to the output; DICOM series keep the names of their files."""
    if one.kind == "dicom" or not session.job.options.derivatives:
        return one.path
    return target_name(one.path, action)


def _folder(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target.parent} cannot be made ({error.strerror}); choose another output.") from error


def _refaced(session: _Session, before: Volume, anatomy: Anatomy) -> tuple[Volume, list[Check]]:
    prepared = session.refacer.prepare(before, anatomy=anatomy)
    result = session.refacer.reface(prepared, seed=session.job.seed)
    return result.volume, result.checks


def _defaced(session: _Session, one: Series, before: Volume, anatomy: Anatomy) -> tuple[Volume, list[Check]]:
    from ..checks import check_defaced
    from ..defacing import empty_face

    after, air = empty_face(before, anatomy)
    if one.phase and not anatomy.already_defaced:
        stored = before.stored.copy()
        anatomy.view.to_asl(stored)[anatomy.face_region] = before.to_stored(np.zeros(1))[0]
        after = before.with_stored(stored)
    return after, check_defaced(before, after, anatomy, air)


def _timeseries(
    session: _Session, one: Series, anatomy: Anatomy, row: Row, facts: dict[str, Any], target: str
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Every volume alike; brain and all else outside the face region keep their bits."""
    series = TimeSeries.read(session.input / one.path)
    region = np.ascontiguousarray(anatomy.view.to_native(anatomy.face_region))
    if row.action == "reface":
        for at in range(series.count):
            volume = series.volume(at)
            try:
                after, _ = _refaced(session, volume, replace(anatomy, skin=session.skin(volume)))
            except CheckError as error:
                raise CheckError(f"Volume {at + 1} of {series.count}: {error}") from error
            series.stored[region, at] = after.stored[region]
    else:
        kept = series.stored[~region, :]
        lowest = kept.min() if series.slope > 0 else kept.max()
        series.stored[region, :] = np.zeros((), series.stored.dtype) if one.phase else lowest
    outputs = _masks(session, one, session.volume(one), anatomy)
    outputs += _beside(session, one, FACE if row.action == "reface" else EMPTY, target)
    series.write(session.output / target)
    return (*outputs, target), {**facts, "volumes": series.count}


def _empty(session: _Session, one: Series, anatomy: Anatomy, name: str) -> tuple[str, ...]:
    """A mask or derivative: 0 in the face region."""
    region = np.ascontiguousarray(anatomy.view.to_native(anatomy.face_region))
    source, target = session.input / one.path, session.output / name
    if one.path.lower().endswith(".nrrd"):
        volume = Volume.read(source)
        stored = volume.stored.copy()
        stored[region] = volume.to_stored(np.zeros(1))[0]
        volume.with_stored(stored).write(target)
    else:
        series = TimeSeries.read(source)
        zero = -series.intercept / series.slope if series.slope else 0.0
        series.stored[region, :] = np.asarray(np.rint(zero) if series.stored.dtype.kind in "iu" else zero).astype(
            series.stored.dtype
        )
        series.write(target)
    return (name,)


def _copy(session: _Session, one: Series) -> tuple[str, ...]:
    if one.kind == "dicom":  # UIDs that other series name must fit
        from ..volume.dicom_output import write_series

        volume = session.volume(one)
        sources = [session.input / name for name in one.files]
        write_series(sources, [session.output / name for name in one.files], volume, None, session.job.uid_key)
        return one.files
    for name in one.files:
        copy_file(session.input / name, session.output / name, session.job.options.link)
    return one.files


def copy_file(source: Path, target: Path, link: bool = False) -> None:
    """Copy a file's content, or, with `link`, make a hard link to it where the disk allows that; it appears
    complete or not at all. Raises InputError where that fails."""
    if link and _linked(source, target):
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def _linked(source: Path, target: Path) -> bool:
    """Make the target a hard link to the source; False where that cannot be."""
    with suppress(OSError, InputError):
        if not (target.exists() and os.path.samefile(source, target)):  # to rename one to the other does nothing
            with atomic_path(target) as temporary:
                os.link(source.resolve(), temporary)
        return True
    return False


def _masks(session: _Session, one: Series, volume: Volume, anatomy: Anatomy) -> tuple[str, ...]:
    """The face region as a file (1: emptied or painted), on request."""
    if not session.job.options.masks or one.kind == "dicom":
        return ()
    name = mask_name(one, session.job.layout)
    region = anatomy.view.to_native(anatomy.face_region)
    Volume.from_array(np.ascontiguousarray(region), volume.affine).write(session.output / name)
    return (name,)


def mask_name(one: Series, layout: str) -> str:
    """Where the face region of a series goes; in BIDS it is a defacemask with the entity mod."""
    folder, _, name = one.path.rpartition("/")
    stem = name.split(".")[0]
    if layout == "bids" and one.suffix:
        stem = f"{stem[: -len(one.suffix)]}mod-{one.suffix}"
    return f"{folder}/{stem}_defacemask.nii.gz".lstrip("/")


def _beside(session: _Session, one: Series, what: str, target: str) -> tuple[str, ...]:
    """The JSON sidecar of a scan, with what was done added to what it said; BIDS gets one where it is missing. In
    a derivatives folder it holds what the scan inherited, and gradient tables come along."""
    own, name = sidecar_name(one.path), sidecar_name(target)
    if session.job.layout != "bids" and not (session.input / own).is_file():
        return ()
    content: dict[str, Any] = {}
    for source in sidecars_of(session.input, one.path) if session.job.options.derivatives else (own,):
        with suppress(FileNotFoundError):
            content |= _json(session.input, source)
    write_json(marked(content, what), session.output / name)
    if own == name:
        return (name,)
    tables = []
    for end in (".bval", ".bvec"):
        source, table = (Path(each).with_suffix(end).as_posix() for each in (own, name))
        if (session.input / source).is_file():
            copy_file(session.input / source, session.output / table)
            tables.append(table)
    return (name, *tables)


def _json(root: Path, name: str) -> dict[str, Any]:
    text = (root / name).read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError
    except ValueError as error:
        raise InputError(f"{name} is no JSON object; mend it first.") from error
    return content


def sidecar_name(path: str) -> str:
    """sub-1_T1w.nii.gz -> sub-1_T1w.json."""
    from ..volume.files import suffix_of

    return path[: -len(suffix_of(Path(path)))] + ".json"


def marked(content: dict[str, Any], what: str) -> dict[str, Any]:
    """A BIDS sidecar with De-identification Method and its code added (bids-specification #1772)."""
    method = content.get("DeidentificationMethod", [])
    codes = content.get("DeidentificationMethodCodeSequence", [])
    methods = [method] if isinstance(method, str) else list(method)
    codes = list(codes) if isinstance(codes, list) else []
    if not any(isinstance(code, dict) and code.get("CodeValue") == VISUAL_FEATURES["CodeValue"] for code in codes):
        codes.append(dict(VISUAL_FEATURES))
    return {
        **content,
        "DeidentificationMethod": [*methods, f"RefaceCGAN {__version__}: {what}"],
        "DeidentificationMethodCodeSequence": codes,
    }


def _picture_of_original(session: _Session, one: Series, before: Volume, anatomy: Anatomy) -> None:
    from .pictures import picture_name, thumbnail_bytes

    folder = Path(session.job.options.originals)
    with atomic_path(folder / picture_name(one.path)) as temporary:
        temporary.write_bytes(thumbnail_bytes(before, anatomy))
