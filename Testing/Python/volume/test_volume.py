"""Volume: what comes in goes out again, and what cannot be used is refused in one sentence."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import itertools
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.volume.files import SUFFIXES, atomic_path, check_output
from RefaceCGANLib.volume.volume import Volume

SHAPE = (16, 17, 18)
OBLIQUE = np.array([[-0.9, 0.1, 0.2, 80.0], [0.1, 0.8, -0.3, -90.0], [0.1, 0.3, 1.2, -60.0], [0, 0, 0, 1]])
OBLIQUE[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] * (0.9, 1.0, 1.25)
TYPES = ["u1", "i1", "i2", "u2", "i4", "f4", "f8"]


def noise(dtype: str = "i2", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Random voxels that reach both ends of an integer type."""
    random = np.random.default_rng(1)
    if np.dtype(dtype).kind == "f":
        return random.normal(100, 50, shape).astype(dtype)
    limits = np.iinfo(dtype)
    values = random.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    values.flat[:2] = limits.min, limits.max
    return values


def nifti(path: Path, stored: np.ndarray, affine: np.ndarray = OBLIQUE, **fields: object) -> Path:
    """Write a NIfTI file with nibabel and set header fields (or `nifti2`, `endian`, `extension`) as given."""
    kind = nib.Nifti2Header if fields.pop("nifti2", False) else nib.Nifti1Header
    header = kind(endianness=str(fields.pop("endian", "<")))
    extension = fields.pop("extension", None)
    header.set_data_shape(stored.shape)
    header.set_data_dtype(stored.dtype)
    header.set_xyzt_units("mm", "sec")
    header.set_qform(affine, "scanner")
    header.set_sform(affine, "aligned")
    header["vox_offset"] = header.single_vox_offset
    if extension:
        header.extensions.append(nib.nifti1.Nifti1Extension("comment", extension))
        header["vox_offset"] += header.extensions.get_sizeondisk()
    for name, value in fields.items():
        header[name] = value
    with gzip.open(path, "wb") if path.suffix == ".gz" else open(path, "wb") as file:
        header.write_to(file)
        file.write(stored.astype(stored.dtype.newbyteorder(header.endianness)).tobytes(order="F"))
    return path


def nrrd(path: Path, stored: np.ndarray, space: str = "RAS", encoding: str = "raw", extra: str = "") -> Path:
    types = {"float32": "float", "float64": "double"}
    columns = " ".join("({},{},{})".format(*column) for column in OBLIQUE[:3, :3].T)
    header = (
        f"NRRD0004\n# a comment\ntype: {types.get(stored.dtype.name, stored.dtype.name)}\n"
        f"dimension: 3\nspace: {space}\nsizes: {' '.join(map(str, stored.shape))}\n"
        f"space directions: {columns}\nkinds: domain domain domain\nendian: little\nencoding: {encoding}\n"
        f"space origin: ({OBLIQUE[0, 3]},{OBLIQUE[1, 3]},{OBLIQUE[2, 3]})\n{extra}\n"
    )
    data = stored.tobytes(order="F")
    path.write_bytes(header.encode() + (gzip.compress(data) if encoding == "gzip" else data))
    return path


def dicom(folder: Path, stored: np.ndarray, uid: str = "1.2.3", patient: str = "DOE") -> Path:
    """Write one DICOM file per slice along K, with OBLIQUE geometry."""
    folder.mkdir(exist_ok=True)
    lps = np.diag([-1, -1, 1, 1]) @ OBLIQUE
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    turn = lps[:3, :3] / spacing
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(stored.shape[2]):
        image = sitk.GetImageFromArray(np.ascontiguousarray(stored[:, :, k].T))
        image.SetSpacing(spacing[:2].tolist())
        tags = {
            "0008|0060": "MR",
            "0008|103e": "T1 of DOE",
            "0010|0010": patient,
            "0020|000d": "1.2",
            "0020|000e": uid,
            "0008|0018": f"{uid}.{k + 1}",
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{v:.9f}" for v in lps[:3] @ (0, 0, k, 1)),
            "0020|0037": "\\".join(f"{v:.9f}" for v in turn[:, :2].T.ravel()),
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}-{k:03d}.dcm"))
        writer.Execute(image)
    return folder


def plain_bytes(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix in (".gz", ".mgz") else path.read_bytes()


def refusal(path: Path, *words: str) -> str:
    """The sentence with which `path` is refused; it names the file and says `words`."""
    with pytest.raises(InputError) as caught:
        Volume.read(path)
    return sentence(caught.value, path, *words)


def sentence(error: InputError, path: Path, *words: str) -> str:
    message = str(error)
    assert str(path) in message
    assert "\n" not in message and message.endswith(".") and ". " not in message
    assert ";" in message, "says how to mend it"
    for word in words:
        assert word in message
    return message


# --- what a volume is -------------------------------------------------------------------------------------


def test_a_volume_tells_shape_spacing_and_orientation() -> None:
    volume = Volume.from_array(noise(), np.diag([-1.0, -2.0, 3.0, 1.0]))
    assert (volume.shape, volume.spacing, volume.axcodes) == (SHAPE, (1.0, 2.0, 3.0), "LPS")


def test_the_array_holds_real_values_as_float32(tmp_path: Path) -> None:
    stored = noise("i2")
    volume = Volume.read(nifti(tmp_path / "a.nii", stored, scl_slope=0.5, scl_inter=-100))
    assert volume.array.dtype == np.float32 and volume.array.shape == SHAPE
    np.testing.assert_array_equal(volume.array, stored * np.float32(0.5) - 100)
    np.testing.assert_array_equal(volume.stored, stored)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2"])
@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (13.895223617553711, 0.0), (-0.013, 7.0)])
def test_real_values_find_back_to_the_stored_integers(dtype: str, slope: float, intercept: float) -> None:
    limits = np.iinfo(dtype)
    every = np.arange(limits.min, limits.max + 1).astype(dtype).reshape(4, 4, -1)
    volume = dataclasses.replace(Volume.from_array(every, np.eye(4)), slope=slope, intercept=intercept)
    back = volume.to_stored(volume.array)
    assert back.dtype == every.dtype
    np.testing.assert_array_equal(back, every)


def test_to_stored_rounds_to_nearest_and_clips() -> None:
    volume = Volume.from_array(noise("u1"), np.eye(4))
    assert volume.to_stored(np.array([-5, 1.4, 1.6, 999])).tolist() == [0, 1, 2, 255]
    wide = Volume.from_array(noise("i8"), np.eye(4))
    assert wide.to_stored(np.array([-1e30, 2.6, 1e30])).tolist() == [-(2**63), 3, 2**63 - 1024]


def test_to_stored_refuses_nan() -> None:
    with pytest.raises(ValueError, match="finite"):
        Volume.from_array(noise("u1"), np.eye(4)).to_stored(np.array([np.nan]))


def test_other_voxels_must_have_the_same_shape_and_type() -> None:
    volume = Volume.from_array(noise(), OBLIQUE)
    assert volume.with_stored(volume.stored[::-1]).affine is volume.affine
    for other in (volume.stored[1:], volume.stored.astype("f4")):
        with pytest.raises(ValueError, match="expected int16"):
            volume.with_stored(other)


def test_a_mask_is_written_as_uint8(tmp_path: Path) -> None:
    mask = noise() > 0
    Volume.from_array(mask, OBLIQUE).write(tmp_path / "mask.nii.gz")
    image = nib.load(tmp_path / "mask.nii.gz")
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(image.dataobj, mask)


def test_a_changed_affine_is_not_written_with_the_old_header(tmp_path: Path) -> None:
    volume = Volume.read(nifti(tmp_path / "a.nii", noise()))
    moved = volume.affine.copy()
    moved[0, 3] += 5
    dataclasses.replace(volume, affine=moved).write(tmp_path / "b.nii")
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii").affine, moved, atol=1e-5)


def test_importing_the_module_loads_no_reader() -> None:
    code = "import sys, RefaceCGANLib.volume.volume; print({'nibabel', 'SimpleITK', 'torch'} & set(sys.modules))"
    path = os.pathsep.join(p for p in sys.path if p)
    env = {**os.environ, "PYTHONPATH": path}
    assert subprocess.check_output([sys.executable, "-c", code], env=env).strip() == b"set()"


# --- the same format: header and voxels unchanged ---------------------------------------------------------


@pytest.mark.parametrize("dtype", [*TYPES, "u4", "i8"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_comes_out_byte_for_byte(tmp_path: Path, dtype: str, suffix: str) -> None:
    fields = {"scl_slope": 2.5, "scl_inter": -3, "descrip": b"FSL5.0", "cal_max": 7, "toffset": 2}
    source = nifti(tmp_path / f"a{suffix}", noise(dtype), **fields)
    Volume.read(source).write(tmp_path / f"b{suffix}")
    assert plain_bytes(tmp_path / f"b{suffix}") == plain_bytes(source)


@pytest.mark.parametrize(
    "fields",
    [
        {"endian": ">"},
        {"nifti2": True},
        {"nifti2": True, "endian": ">", "scl_slope": 3},
        {"extension": b"processed by this and that"},
        {"scl_slope": 0, "scl_inter": 5},
        {"scl_slope": np.nan, "scl_inter": np.nan},
        {"qform_code": 0},
        {"sform_code": 0},
        {"sform_code": 4, "qform_code": 2},
        {"xyzt_units": 0},
    ],
    ids=lambda fields: " ".join(f"{k}={v}" for k, v in fields.items()),
)
def test_nifti_keeps_its_header(tmp_path: Path, fields: dict[str, object]) -> None:
    source = nifti(tmp_path / "a.nii.gz", noise("i2"), **fields)
    volume = Volume.read(source)
    np.testing.assert_array_equal(volume.stored, noise("i2"))
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-4)
    assert volume.stored.dtype.isnative
    volume.write(tmp_path / "b.nii.gz")
    assert plain_bytes(tmp_path / "b.nii.gz") == plain_bytes(source)


@pytest.mark.parametrize("slope", [0, np.nan])
def test_a_slope_of_zero_or_nan_means_no_scaling(tmp_path: Path, slope: float) -> None:
    volume = Volume.read(nifti(tmp_path / "a.nii", noise(), scl_slope=slope, scl_inter=5))
    assert (volume.slope, volume.intercept) == (1, 0)


@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE, 1, 1)])
def test_trailing_axes_of_one_stay_in_the_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    source = nifti(tmp_path / "a.nii.gz", noise(shape=shape))
    volume = Volume.read(source)
    assert volume.stored.shape == SHAPE
    volume.with_stored(volume.stored[::-1]).write(tmp_path / "b.nii.gz")
    image = nib.load(tmp_path / "b.nii.gz")
    assert image.shape == shape
    np.testing.assert_array_equal(np.asarray(image.dataobj).reshape(SHAPE), volume.stored[::-1])


@pytest.mark.parametrize(("code", "factor"), [(1, 1e-3), (3, 1e3), (0, 1)])
def test_nifti_units_are_read_as_millimetres(tmp_path: Path, code: int, factor: float) -> None:
    affine = OBLIQUE.copy()
    affine[:3] *= factor
    volume = Volume.read(nifti(tmp_path / "a.nii", noise(), affine, xyzt_units=code))
    np.testing.assert_allclose(volume.affine, OBLIQUE, rtol=1e-5, atol=1e-5)


def test_all_48_orientations_survive_every_format(tmp_path: Path) -> None:
    stored = noise()
    seen = set()
    turns, flips = itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)
    for axes, signs in itertools.product(turns, flips):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, axes] * signs * (1.0, 1.5, 2.0)
        affine[:3, 3] = 10, -20, 30
        volume = Volume.from_array(stored, affine)
        seen.add(volume.axcodes)
        for name in ("a.nii", "b.nrrd", "c.mgh", "d.nii"):
            volume.write(tmp_path / name)
            volume = Volume.read(tmp_path / name)
            np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
            np.testing.assert_array_equal(volume.stored, stored)
        image = nib.load(tmp_path / "d.nii")
        for form in (image.get_qform(), image.get_sform()):
            np.testing.assert_allclose(form, affine, atol=1e-5)
    assert len(seen) == 48


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("dtype", TYPES)
def test_nrrd_keeps_space_type_and_metadata(tmp_path: Path, dtype: str, encoding: str) -> None:
    extra = "measurement frame: (1,0,0) (0,1,0) (0,0,1)\ncontent: T1\nnote:=a key of its own\n"
    source = nrrd(tmp_path / "a.nrrd", noise(dtype), "right-anterior-superior", encoding, extra)
    volume = Volume.read(source)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-12)
    np.testing.assert_array_equal(volume.stored, noise(dtype))
    volume.write(tmp_path / "b.nrrd")
    header, _, data = (tmp_path / "b.nrrd").read_bytes().partition(b"\n\n")
    assert set(header.split(b"\n")) == set(source.read_bytes().partition(b"\n\n")[0].split(b"\n"))
    assert (gzip.decompress(data) if encoding == "gzip" else data) == noise(dtype).tobytes(order="F")
    again = Volume.read(tmp_path / "b.nrrd")
    np.testing.assert_array_equal(again.stored, volume.stored)
    np.testing.assert_array_equal(again.affine, volume.affine)


def test_an_nrrd_laid_down_otherwise_comes_out_little_endian(tmp_path: Path) -> None:
    header = nrrd(tmp_path / "a.nrrd", noise("i2")).read_bytes().partition(b"\n\n")[0] + b"\n\n"
    big = header.replace(b"endian: little", b"endian: big") + noise("i2").astype(">i2").tobytes(order="F")
    numbers = " ".join(map(str, noise("i2").ravel(order="F")))
    text = header.replace(b"encoding: raw", b"encoding: ascii") + numbers.encode("ascii")
    for data in (big, text):
        (tmp_path / "a.nrrd").write_bytes(data)
        volume = Volume.read(tmp_path / "a.nrrd")
        volume.write(tmp_path / "b.nrrd")
        for stored in (volume.stored, Volume.read(tmp_path / "b.nrrd").stored):
            np.testing.assert_array_equal(stored, noise("i2"))


def test_nrrd_spaces_agree_with_nifti(tmp_path: Path) -> None:
    flips = {"LPS": (-1, -1, 1, 1), "left-anterior-superior": (-1, 1, 1, 1), "RAS": (1, 1, 1, 1)}
    for space, flip in flips.items():
        volume = Volume.read(nrrd(tmp_path / "a.nrrd", noise(), space))
        np.testing.assert_allclose(volume.affine, np.diag(flip) @ OBLIQUE, atol=1e-12)


@pytest.mark.parametrize("suffix", [".mgh", ".mgz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
def test_mgh_comes_out_byte_for_byte(tmp_path: Path, dtype: str, suffix: str) -> None:
    image = nib.MGHImage(noise(dtype), OBLIQUE.astype("f4"))
    image.header["tr"], image.header["flip_angle"] = 2300, 0.15
    source = tmp_path / f"a{suffix}"
    nib.save(image, source)
    tags = b"\0\0\0\x03\0\0\0\0\0\0\0\x05mri_x"
    tagged = plain_bytes(source) + tags
    source.write_bytes(gzip.compress(tagged) if suffix == ".mgz" else tagged)
    volume = Volume.read(source)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-4)
    volume.write(tmp_path / f"b{suffix}")
    assert plain_bytes(tmp_path / f"b{suffix}") == plain_bytes(source)


# --- another format: geometry, type and values stay -------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_another_format_keeps_geometry_type_and_voxels(tmp_path: Path, dtype: str, suffix: str) -> None:
    volume = Volume.from_array(noise(dtype), OBLIQUE)
    volume.write(tmp_path / f"b{suffix}")
    again = Volume.read(tmp_path / f"b{suffix}")
    assert again.stored.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(again.stored, volume.stored)
    np.testing.assert_allclose(again.affine, OBLIQUE, atol=1e-5)


def test_itk_and_nibabel_see_a_written_file_in_the_same_place(tmp_path: Path) -> None:
    volume = Volume.from_array(noise(), OBLIQUE)
    for suffix in SUFFIXES:
        volume.write(tmp_path / f"b{suffix}")
    point = sitk.ReadImage(str(tmp_path / "b.nrrd")).TransformIndexToPhysicalPoint((3, 5, 7))
    for suffix in (".nii", ".nii.gz", ".mgh", ".mgz"):
        image = nib.load(tmp_path / f"b{suffix}")
        np.testing.assert_allclose((image.affine @ (3, 5, 7, 1))[:3] * (-1, -1, 1), point, atol=1e-4)
        np.testing.assert_array_equal(image.dataobj, volume.stored)


@pytest.mark.parametrize("suffix", [".nrrd", ".mgz"])
def test_scaled_data_become_real_float32_where_the_format_has_no_scale(tmp_path: Path, suffix: str) -> None:
    volume = Volume.read(nifti(tmp_path / "a.nii", noise("u1"), scl_slope=13.9))
    volume.write(tmp_path / f"b{suffix}")
    again = Volume.read(tmp_path / f"b{suffix}")
    assert again.stored.dtype == np.float32
    np.testing.assert_array_equal(again.stored, volume.array)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("i1", "i2"), ("u2", "i4"), ("u4", "f4"), ("f8", "f4"), ("i4", "i4")]
)
def test_mgh_holds_other_types_in_one_that_fits(tmp_path: Path, dtype: str, expected: str) -> None:
    stored = noise(dtype)
    Volume.from_array(stored, OBLIQUE).write(tmp_path / "b.mgz")
    again = Volume.read(tmp_path / "b.mgz").stored
    assert again.dtype == np.dtype(expected)
    np.testing.assert_array_equal(again, stored.astype(expected))


def test_a_sheared_grid_is_written_without_a_qform(tmp_path: Path) -> None:
    sheared = np.eye(4)
    sheared[0, 2] = 0.3
    Volume.from_array(noise(), sheared).write(tmp_path / "b.nii")
    header = nib.load(tmp_path / "b.nii").header
    assert int(header["qform_code"]) == 0
    np.testing.assert_allclose(header.get_best_affine(), sheared, atol=1e-6)


# --- DICOM ------------------------------------------------------------------------------------------------


def test_a_dicom_series_is_read_with_its_geometry(tmp_path: Path) -> None:
    stored = noise("u2")
    volume = Volume.read(dicom(tmp_path / "scan", stored))
    if np.dot(volume.affine[:3, 2], OBLIQUE[:3, 2]) < 0:  # the reader may count slices from the other end
        stored = stored[:, :, ::-1]
    np.testing.assert_array_equal(volume.stored, stored)
    assert volume.stored.dtype == np.uint16 and volume.warnings == ()
    corners = {tuple(np.round((volume.affine @ (0, 0, k, 1))[:3], 3)) for k in (0, SHAPE[2] - 1)}
    assert corners == {tuple(np.round((OBLIQUE @ (0, 0, k, 1))[:3], 3)) for k in (0, SHAPE[2] - 1)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_of_a_dicom_header_is_written(tmp_path: Path, suffix: str) -> None:
    volume = Volume.read(dicom(tmp_path / "scan", noise("u2"), patient="Erika^Mustermann"))
    volume.write(tmp_path / f"b{suffix}")
    written = plain_bytes(tmp_path / f"b{suffix}")
    assert b"Muster" not in written and b"DOE" not in written and b"1.2.3" not in written


def test_a_folder_with_two_series_is_refused_and_names_them(tmp_path: Path) -> None:
    dicom(tmp_path / "scan", noise("u2"))
    dicom(tmp_path / "scan", noise("u2")[:, :, :5], uid="1.2.9")
    refusal(tmp_path / "scan", "1.2.3 (18 slices, T1 of DOE)", "1.2.9 (5 slices, T1 of DOE)")


def test_a_folder_with_a_missing_slice_is_refused(tmp_path: Path) -> None:
    dicom(tmp_path / "scan", noise("u2"))
    (tmp_path / "scan" / "1.2.3-007.dcm").unlink()
    refusal(tmp_path / "scan", "missing or unevenly spaced slices")


def test_a_folder_with_a_damaged_slice_is_refused(tmp_path: Path) -> None:
    broken = dicom(tmp_path / "scan", noise("u2")) / "1.2.3-017.dcm"
    broken.write_bytes(broken.read_bytes()[:-50])
    with pytest.raises(InputError) as caught:
        Volume.read(tmp_path / "scan")
    sentence(caught.value, broken, "damaged")


def test_a_folder_with_two_volumes_in_one_series_is_refused(tmp_path: Path) -> None:
    folder = dicom(tmp_path / "scan", noise("u2"))
    for k, path in enumerate(sorted(folder.iterdir())):
        path.with_name(f"second-{k}.dcm").write_bytes(path.read_bytes())
    refusal(folder, "several slices at one position")


def test_a_folder_without_dicom_is_refused(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("hello")
    refusal(tmp_path, "no DICOM series")


# --- what is refused --------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a missing file": ("a.nii.gz", lambda p: None, "does not exist"),
    "an unknown suffix": ("a.dcm", lambda p: p.write_bytes(b"x"), "no known suffix"),
    "a text file called .nii.gz": ("a.nii.gz", lambda p: p.write_text("hello"), "not a NIfTI file"),
    "a text file called .nii": ("a.nii", lambda p: p.write_text("hello"), "not a NIfTI file"),
    "a text file called .nrrd": ("a.nrrd", lambda p: p.write_text("hello"), "not an NRRD file"),
    "a text file called .mgh": ("a.mgh", lambda p: p.write_text("hello" * 99), "not an MGH file"),
    "an empty file": ("a.nii", lambda p: p.write_bytes(b""), "not a NIfTI file"),
    "a truncated header": ("a.nii", lambda p: cut(nifti(p, noise()), 300), "cut short"),
    "truncated voxels": ("a.nii", lambda p: cut(nifti(p, noise()), -1), "cut short"),
    "a truncated gzip": ("a.nii.gz", lambda p: cut(nifti(p, noise()), -9), "cut short"),
    "a wrong gzip checksum": ("a.nii.gz", lambda p: flip(nifti(p, noise())), "damaged"),
    "a truncated NRRD": ("a.nrrd", lambda p: cut(nrrd(p, noise()), -1), "damaged"),
    "a truncated MGH": ("a.mgh", lambda p: cut(mgh(p), 5000), "cut short"),
    "a 2D image": ("a.nii", lambda p: nifti(p, noise(shape=(20, 20, 1))), "2D"),
    "a 4D image": ("a.nii", lambda p: nifti(p, noise(shape=(*SHAPE, 2))), "several volumes"),
    "a 4D image cut short": ("a.nii.gz", lambda p: cut(nifti(p, noise(shape=(*SHAPE, 2))), 900), "several"),
    "colours": ("a.nii", lambda p: nifti(p, np.zeros(SHAPE, [(c, "u1") for c in "RGB"])), "colours"),
    "complex numbers": ("a.nii", lambda p: nifti(p, noise("f4").astype("c8")), "complex"),
    "NaN alone": ("a.nii", lambda p: nifti(p, np.full((20, 20, 20), np.nan, "f4")), "nothing but NaN"),
    "infinity": ("a.nrrd", lambda p: nrrd(p, with_value(-np.inf)), "infinite"),
    "zeros only": ("a.nii", lambda p: nifti(p, np.zeros(SHAPE, "i2")), "the value 0 in every voxel"),
    "a constant": ("a.nrrd", lambda p: nrrd(p, np.full(SHAPE, 7, "u1")), "the value 7 in every voxel"),
    "a singular affine": ("a.nii", lambda p: nifti(p, noise(), srow_z=(0, 0, 0, 0)), "affine"),
    "an affine with NaN": ("a.nii", lambda p: nifti(p, noise(), srow_x=(np.nan, 0, 0, 0)), "affine"),
    "a quaternion that is none": ("a.nii", lambda p: nifti(p, noise(), sform_code=0, quatern_b=5), "damaged"),
    "a short axis": ("a.nii", lambda p: nifti(p, noise(shape=(15, 20, 20))), "15x20x20 voxels"),
    "voxels of 0.1 mm": ("a.nii", lambda p: nifti(p, noise(), np.diag([0.1, 1, 1, 1])), "0.1x1x1 mm"),
    "voxels of 10 mm": ("a.nii", lambda p: nifti(p, noise(), np.diag([1, 1, 10, 1])), "1x1x10 mm"),
    "NIfTI without orientation": (
        "a.nii", lambda p: nifti(p, noise(), sform_code=0, qform_code=0), "no known orientation",
    ),
    "ANALYZE": ("a.nii", lambda p: nifti(p, noise(), magic=b"\0\0\0\0"), "no known orientation"),
    "the header of a pair": ("a.nii", lambda p: nifti(p, noise(), magic=b"ni1"), ".hdr/.img pair"),
    "NRRD without orientation": ("a.nrrd", lambda p: nrrd(p, noise(), "scanner-xyz"), "no known orientation"),
    "MGH without orientation": ("a.mgh", lambda p: unset_ras(mgh(p)), "no known orientation"),
}  # fmt: skip


def cut(path: Path, end: int) -> None:
    path.write_bytes(path.read_bytes()[:end])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # in the checksum
    path.write_bytes(data)


def mgh(path: Path) -> Path:
    nib.save(nib.MGHImage(noise(), OBLIQUE), path)
    return path


def unset_ras(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[28:30] = b"\0\0"
    path.write_bytes(data)


def with_value(value: float) -> np.ndarray:
    stored = noise("f4")
    stored[3, 4, 5] = value
    return stored


@pytest.mark.parametrize("what", BROKEN)
def test_is_refused_in_one_sentence(what: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name, make, word = BROKEN[what]
    make(tmp_path / name)
    capfd.readouterr()
    refusal(tmp_path / name, word)
    assert capfd.readouterr() == ("", ""), "no text of a library comes out"


def test_an_array_that_is_no_volume_is_refused() -> None:
    flat, imaginary, nowhere = noise(shape=(20, 20)), noise("f4") * 1j, np.zeros((4, 4))
    for array, affine in [(flat, OBLIQUE), (imaginary, OBLIQUE), (noise(), nowhere)]:
        with pytest.raises(InputError, match="the volume"):
            Volume.from_array(array, affine)


# --- writing ----------------------------------------------------------------------------------------------


def test_an_output_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        Volume.from_array(noise(), OBLIQUE).write(tmp_path / "b.nii.gz")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "b.nii.gz").stat().st_mode) == 0o640


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        Volume.from_array(noise(), OBLIQUE).write(tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, OSError(errno.ENOSPC, "No space")])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "report.json"
    target.write_text("old")
    with pytest.raises(BaseException) as caught, atomic_path(target) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".json"
        temporary.write_text("half of the n")
        raise failure
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["report.json"]
    if isinstance(failure, OSError):
        assert isinstance(caught.value, InputError)
        sentence(caught.value, target, "no space is left")


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gzip.GzipFile, "write", full)
    with pytest.raises(InputError, match="no space is left"):
        Volume.from_array(noise(), OBLIQUE).write(tmp_path / "b.nii.gz")
    assert os.listdir(tmp_path) == []


def test_an_impossible_output_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.nii").mkdir()
    for name, word in {
        "nowhere/b.nii": "folder does not exist",
        "folder.nii": "is not a file",
        "b.tiff": "no known suffix",
    }.items():
        with pytest.raises(InputError) as caught:
            check_output(tmp_path / name)
        sentence(caught.value, tmp_path / name, word)
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, whom nothing stops
    with pytest.raises(InputError, match="read-only"):
        check_output(tmp_path / "b.nii")


def test_other_rooms_check_their_own_suffixes(tmp_path: Path) -> None:
    assert check_output(tmp_path / "r.json", suffixes=[".json"]) == tmp_path / "r.json"
    with pytest.raises(InputError, match=r"\.json"):
        check_output(tmp_path / "r.txt", suffixes=[".json"])


@pytest.mark.parametrize("how", ["name", "detour", "symlink", "hardlink", "folder link"])
def test_the_input_is_never_overwritten(tmp_path: Path, how: str) -> None:
    source = nifti(tmp_path / "a.nii", noise())
    before = source.read_bytes()
    output = tmp_path / "b.nii"
    if how == "name":
        output = source
    elif how == "detour":
        (tmp_path / "sub").mkdir()
        output = tmp_path / "sub" / ".." / "a.nii"
    elif how == "symlink":
        output.symlink_to(source)
    elif how == "hardlink":
        output.hardlink_to(source)
    else:
        (tmp_path / "link").symlink_to(tmp_path)
        output = tmp_path / "link" / "a.nii"
    with pytest.raises(InputError) as caught:
        Volume.read(source).write(output)
    sentence(caught.value, output, "never overwritten")
    assert source.read_bytes() == before


# --- real heads -------------------------------------------------------------------------------------------


@pytest.mark.heads
def test_a_train_head_keeps_its_scale_factor_and_extension(heads: Path, tmp_path: Path) -> None:
    source = heads / "train" / "ixi012.nii.gz"
    volume = Volume.read(source)
    assert (volume.axcodes, volume.stored.dtype, volume.slope) == ("PSR", np.uint8, 13.895223617553711)
    np.testing.assert_array_equal(volume.to_stored(volume.array), volume.stored)
    volume.with_stored(volume.to_stored(volume.array)).write(tmp_path / "b.nii.gz")
    assert plain_bytes(tmp_path / "b.nii.gz") == plain_bytes(source)


@pytest.mark.heads
def test_a_large_head_comes_out_byte_for_byte(heads: Path, tmp_path: Path) -> None:
    source = heads / "native" / "uih1.nii.gz"
    volume = Volume.read(source)
    assert (volume.shape, volume.axcodes) == ((460, 512, 160), "PIR")
    volume.write(tmp_path / "b.nii.gz")
    assert plain_bytes(tmp_path / "b.nii.gz") == plain_bytes(source)


@pytest.mark.heads
def test_a_dicom_series_equals_the_same_scan_as_nifti(heads: Path) -> None:
    series, image = Volume.read(heads / "native" / "adi_dicom"), Volume.read(heads / "native" / "adi.nii.gz")
    np.testing.assert_array_equal(series.stored, image.stored)
    np.testing.assert_allclose(series.affine, image.affine, atol=1e-4)
    # one of its 176 slices was never exported, and the NIfTI closes the gap the same way
    assert "After slice 114 of 175" in series.warnings[0] and image.warnings == ()
