"""Discovery: what a data set holds, from names and first bytes alone. No voxel is read here.

What cannot show a face is copied; what is an image becomes a series of a session; whatever is neither known nor
harmless is withheld, with one reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from ..volume.volume import SUFFIXES
from .plan import Row

Layout = Literal["bids", "folder"]
Kind = Literal["nifti", "dicom"]

HARMLESS = (
    *(
        ".json",
        ".tsv",
        ".tsv.gz",
        ".csv",
        ".bval",
        ".bvec",
        ".txt",
        ".md",
        ".rst",
        ".yml",
        ".yaml",
        ".toml",
        ".cff",
    ),
    *(".xml", ".xsd", ".m", ".py", ".sh", ".r", ".bib", ".sha256", ".md5"),
    *(".edf", ".bdf", ".vhdr", ".vmrk", ".eeg", ".set", ".fdt"),
)
"""Endings of files that hold text, numbers or an EEG: no picture of a face. HTML and PDF may hold one."""
HARMLESS_NAMES = ("README", "CHANGES", "LICENSE", "COPYING", "AUTHORS", "CITATION", "MAINTAINERS", ".bidsignore")
MASKS = ("mask", "dseg", "probseg", "defacemask", "roi", "seg", "lesion", "label", "aparc", "aseg")
"""What a derivative's name ends in (BIDS suffix), or holds as a word."""
PHASE = ("phase", "phasediff", "phase1", "phase2", "fieldmap")
"""BIDS suffixes of images that hold no magnitude: their face region is emptied and gets no face."""
FIELD_MAP = ("magnitude", "magnitude1", "magnitude2", *PHASE)
MP2RAGE = ("MP2RAGE", "UNIT1", "T1map", "R1map")
OTHER_FOLDERS = ("derivatives", "sourcedata")
WORDS = {  # what a name outside BIDS, or a DICOM series description, says about the contrast
    "T1w": r"t1w?|mp-?rage|spgr|bravo|mp2-?rage|tfl",
    "T2w": r"t2w?|tse|space",
    "FLAIR": r"flair|tirm|dark-?fluid",
    "T2starw": r"t2\*|t2star\w*|gre|swi|swan",
    "PDw": r"pdw?|proton",
    "bold": r"bold|fmri|rest|task|epi",
    "dwi": r"dwi|dti|diff\w*|hardi|noddi",
    "asl": r"asl|p?casl",
    "pet": r"pet|fdg|suv\w*",
    "CT": r"ct|cta",
}
DICOM_IMAGES = ("MR", "CT", "PT", "NM")


@dataclass(frozen=True)
class Series:
    """One acquisition of one visit.

    path: relative to the input, with slashes; of a DICOM series the folder, number and description.
    files: the same of all its files.  suffix: its contrast as BIDS calls it, "" where unknown.  entities: the
    parts of a BIDS name, without subject and session."""

    path: str
    kind: Kind
    files: tuple[str, ...]
    subject: str
    session: str
    suffix: str = ""
    entities: tuple[tuple[str, str], ...] = ()
    uid: str = ""
    derivative: bool = False

    def entity(self, name: str) -> str:
        return dict(self.entities).get(name, "")

    @property
    def phase(self) -> bool:
        """Does it hold something else than magnitudes?"""
        return self.suffix in PHASE or self.entity("part") in ("phase", "real", "imag")

    @property
    def unlike(self) -> str:
        """Why no model can paint a face into it; "" where one can."""
        if self.phase:
            return "without magnitudes"
        return "for which there is no model" if self.suffix == "CT" else ""

    @property
    def acquisition(self) -> tuple[str, ...]:
        """The same for images of one acquisition (echoes, inversions, phase): the head did not move between."""
        family = self.suffix
        for name, members in (("field map", FIELD_MAP), ("MP2RAGE", MP2RAGE)):
            family = name if self.suffix in members else family
        varying = ("inv", "part", "echo", "flip", "mt")
        kept = tuple(f"{key}-{value}" for key, value in self.entities if key not in varying)
        return (str(Path(self.path).parent), family, *kept)


@dataclass(frozen=True)
class Found:
    """series: the scans.  also: masks and derivatives to be emptied alike.  rows: what is decided already."""

    layout: Layout
    series: tuple[Series, ...]
    also: tuple[Series, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Wanted:
    """Globs on paths relative to the input (* also crosses slashes), or on names alone.

    also: masks and derivatives to be emptied alike.  keep: files that show no face, as their owner says.
    skip: files to be left out.  subjects, sessions: labels to be done, without sub- and ses-; () for all.
    filters: of a BIDS filter file, {entity: value}; a scan is done that fits one of them."""

    also: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    filters: tuple[dict[str, Any], ...] = ()


def discover(root: Path, wanted: Wanted | None = None) -> Found:
    """Look through a data set. Raises InputError where there is nothing to do in it."""
    wanted = wanted or Wanted()
    if not root.is_dir():
        why = "is a file" if root.exists() else "does not exist"
        raise InputError(f"{root} {why}; give the folder of a data set.")
    layout: Layout = "bids" if _is_bids(root) else "folder"
    series: list[Series] = []
    also: list[Series] = []
    rows: list[Row] = []
    slices: list[str] = []
    for path, problem in _files(root):
        if matches(path, wanted.skip):
            rows.append(Row(path, "", "", "leave", "Left out on request (--skip)."))
        elif problem:
            rows.append(problem)
        elif matches(path, wanted.keep):
            rows.append(Row(path, "", "", "copy", "Shows no face, as the call says (--keep)."))
        elif _harmless(path):
            rows.append(Row(path, *_labels(path), "copy", "Holds no image."))
        elif path.lower().endswith(SUFFIXES):
            found = _image(path, layout)
            if matches(path, wanted.also):
                also.append(replace(found, derivative=True))
            elif found.derivative:
                reason = "Is a mask or a derivative; name it with --also to empty its face region."
                rows.append(Row(path, found.subject, found.session, "withhold", reason))
            else:
                series.append(found)
        elif _is_dicom(root / path):
            slices.append(path)
        else:
            rows.append(Row(path, *_labels(path), "withhold", "Is of a kind that may show a face; see --keep."))
    if layout == "bids":
        reason = "DICOM in a BIDS data set is not handled; give its folder as a data set of its own."
        rows += [Row(path, *_labels(path), "withhold", reason) for path in slices]
    else:
        stacks, refused = dicom_series(root, slices)
        series += stacks
        rows += refused
    if wanted.subjects or wanted.sessions:
        series = [one for one in series if _chosen(one.subject, one.session, wanted)]
        also = [one for one in also if _chosen(one.subject, one.session, wanted)]
        rows = [row for row in rows if not row.subject or _chosen(row.subject, row.session, wanted)]
    if wanted.filters:
        chosen = [one for one in series if any(fits(one, entry) for entry in wanted.filters)]
        others = tuple(
            f"{Path(one.path).with_name(_stem(one.path)).as_posix()}." for one in series if one not in chosen
        )
        rows = [row for row in rows if not row.path.startswith(others)]  # their sidecars
        series = chosen
    if not series and not any(row.action == "withhold" for row in rows):
        narrowed = wanted.subjects or wanted.sessions or wanted.filters
        what = "no image of what was asked for" if narrowed else "no image"
        raise InputError(
            f"{root} holds {what}; give a BIDS data set, or a folder with {', '.join(SUFFIXES)} or DICOM."
        )
    return Found(layout, tuple(series), tuple(also), tuple(rows))


LONG_NAMES = {
    "acquisition": "acq", "reconstruction": "rec", "direction": "dir", "ceagent": "ce", "inversion": "inv",
}  # fmt: skip
"""Entities as BIDS filter files write them out."""


def fits(one: Series, entry: dict[str, Any]) -> bool:
    """Does a series have all the values of one filter? None stands for an entity that is not there."""
    known = {"subject": one.subject, "session": one.session, "suffix": one.suffix}
    known["datatype"] = Path(one.path).parent.name
    for name, value in entry.items():
        if name in ("desc", "space", "extension"):
            continue
        have = known[name] if name in known else one.entity(LONG_NAMES.get(name, name))
        wanted = value if isinstance(value, list) else [value]
        if not any(have == ("" if each is None else str(each)) for each in wanted):
            return False
    return True


def matches(path: str, globs: Iterable[str]) -> bool:
    name = path.rsplit("/", 1)[-1]
    return any(fnmatchcase(path, glob) or fnmatchcase(name, glob) for glob in globs)


def _chosen(subject: str, session: str, wanted: Wanted) -> bool:
    return (not wanted.subjects or subject in wanted.subjects) and (
        not wanted.sessions or not session or session in wanted.sessions
    )


def _is_bids(root: Path) -> bool:
    if (root / "dataset_description.json").is_file():
        return True
    return any(
        (path / kind).is_dir() for path in root.glob("sub-*") for kind in ("anat", "func", "dwi", "pet", "perf")
    ) or any(root.glob("sub-*/ses-*/anat"))


def _files(root: Path) -> Iterator[tuple[str, Row | None]]:
    """Every file, relative to the root, in the order of names, and a row for what is not even looked at."""

    def unreadable(error: OSError) -> None:
        problems.append(error)

    problems: list[OSError] = []
    for folder, subfolders, names in os.walk(root, onerror=unreadable):
        below = Path(folder).relative_to(root)
        for name in sorted(subfolders):
            path = (below / name).as_posix()
            if name.startswith("."):
                yield path, Row(path, "", "", "leave", "Is a hidden folder.")
            elif os.path.islink(os.path.join(folder, name)):
                yield path, Row(path, "", "", "withhold", "Is a link to a folder, which is not followed.")
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = (below / name).as_posix()
            full = Path(folder) / name
            if name.startswith(".") and name not in HARMLESS_NAMES:
                yield path, Row(path, "", "", "leave", "Is a hidden file.")
            elif not full.exists():
                reason = "Is a link to a file that is not here; fetch its content first."
                yield path, Row(path, *_labels(path), "withhold", reason)
            elif not full.is_file():
                yield path, Row(path, "", "", "leave", "Is not a file.")
            else:
                yield path, None
    for error in problems:
        path = Path(error.filename).relative_to(root).as_posix() if error.filename else "."
        yield path, Row(path, "", "", "withhold", "May not be read; ask its owner for permission.")


def _harmless(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    if name in HARMLESS_NAMES:
        return True
    return name.lower().endswith(HARMLESS) and "headshape" not in name  # that is, digitised points of a face


def _labels(path: str) -> tuple[str, str]:
    """Subject and session as the folders or the name say, "" where they do not."""
    found = []
    for key in ("sub", "ses"):
        match = re.search(rf"(?:^|[/_]){key}-([a-zA-Z0-9]+)", path)
        found.append(match[1] if match else "")
    return found[0], found[1]


def _stem(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    suffix = next(suffix for suffix in SUFFIXES if name.lower().endswith(suffix))
    return name[: -len(suffix)]


def _image(path: str, layout: Layout) -> Series:
    subject, session = _labels(path)
    stem, folders = _stem(path), path.split("/")[:-1]
    parts = [part.partition("-") for part in stem.split("_")]
    entities = tuple((key, value) for key, dash, value in parts if dash and key not in ("sub", "ses"))
    if layout == "bids":
        suffix = "" if "-" in stem.rsplit("_", 1)[-1] else stem.rsplit("_", 1)[-1]
        derivative = suffix in MASKS or folders[:1] in [[name] for name in OTHER_FOLDERS]
    else:
        suffix = guessed(stem)
        words = re.split(r"[^a-z0-9]+|(?<=[a-z])(?=[0-9])", stem.lower())
        derivative = any(word in MASKS for word in words)
        if not subject:  # the first folder is the person and what follows the visit; a file alone is a person
            subject, session = (folders[0], "/".join(folders[1:])) if folders else (stem, "")
    return Series(path, "nifti", (path,), subject, session, suffix, entities, derivative=derivative)


def guessed(text: str) -> str:
    """The contrast (BIDS suffix) that a free name speaks of, or ""."""
    return next(
        (
            suffix
            for suffix in ("FLAIR", "bold", "dwi", "asl", "pet", "T2starw", "T1w", "T2w", "PDw", "CT")
            if re.search(rf"(?:^|[^a-z])(?:{WORDS[suffix]})(?:[^a-z0-9]|$)", text.lower())
        ),
        "",
    )


# --- DICOM ------------------------------------------------------------------------------------------------


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


_TAGS = (
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality"),
    *("NumberOfFrames", "ImageType", "SOPInstanceUID"),
)


def dicom_series(root: Path, paths: Sequence[str]) -> tuple[list[Series], list[Row]]:
    """DICOM files (relative to the root) by series; a person is a PatientID, a session a study.

    Rows: what is withheld: other objects than images, enhanced multi-frame images and mosaics, files that cannot
    be read, and studies of more than one patient."""
    if not paths:
        return [], []
    import pydicom

    rows: list[Row] = []
    headers: dict[str, list[tuple[str, Any]]] = {}
    patients: dict[str, set[str]] = {}
    for path in paths:
        try:
            header = pydicom.dcmread(root / path, stop_before_pixels=True, specific_tags=list(_TAGS))
            series = str(header.SeriesInstanceUID)
        except Exception:  # whatever a damaged header makes of it
            index = path.rsplit("/", 1)[-1].upper() == "DICOMDIR"
            if index:
                rows.append(Row(path, "", "", "leave", "Is an index, which would not match the output."))
            else:
                rows.append(Row(path, "", "", "withhold", "Is a damaged DICOM file or no image."))
            continue
        headers.setdefault(series, []).append((path, header))
        patients.setdefault(_text(header, "StudyInstanceUID"), set()).add(_text(header, "PatientID"))
    found = []
    for uid, members in headers.items():
        path, header = members[0]
        files = tuple(path for path, _ in members)
        study, patient = _text(header, "StudyInstanceUID"), _text(header, "PatientID")
        number, text = _text(header, "SeriesNumber") or "0", _text(header, "SeriesDescription")
        folder = Path(path).parent.as_posix()
        label = f"{'' if folder == '.' else folder + '/'}[{number} {text}]".replace("\t", " ")
        reason = _refused(members, patients[study])
        if reason:
            rows += [Row(path, patient, study, "withhold", reason) for path in files]
            continue
        suffix = guessed(text.replace("_", " ")) or {"CT": "CT", "PT": "pet"}.get(_text(header, "Modality"), "")
        found.append(Series(label, "dicom", files, patient or study, study, suffix, uid=uid))
    # two series may have one label
    count: dict[str, int] = {}
    named = []
    for one in found:
        count[one.path] = count.get(one.path, 0) + 1
        named.append(replace(one, path=f"{one.path} {count[one.path]}") if count[one.path] > 1 else one)
    return named, rows


def _text(header: object, name: str) -> str:
    return str(getattr(header, name, "") or "").strip()


def _refused(members: Sequence[tuple[str, object]], patients: set[str]) -> str:
    header = members[0][1]
    modality = _text(header, "Modality")
    if len(patients) > 1:
        return "Belongs to a study of more than one patient; separate them first."
    if modality not in DICOM_IMAGES:
        return f"Is a DICOM object of the kind {modality or 'unknown'}, which is not handled."
    if any((_text(one, "NumberOfFrames") or "1") not in ("0", "1") for _, one in members):
        return (
            "Is an enhanced multi-frame DICOM image, which is not handled; convert it to NIfTI, for example with "
            "dcm2niix, or export single frames."
        )
    if "MOSAIC" in _text(header, "ImageType"):
        return "Is a mosaic of slices, which is not handled; convert it to NIfTI, for example with dcm2niix."
    if len({_text(one, "PatientID") for _, one in members}) > 1:
        return "Is a series of more than one patient; separate them first."
    return ""
