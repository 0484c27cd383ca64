"""Surface: from a scan to the skin, to a picture of the face, to a mesh file."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.rendering.skin_surface import (
    BACKGROUND,
    LABEL_PIXELS,
    Surface,
    compare_image,
    frame_of,
    polydata,
    render,
    skin_surface,
    skin_threshold,
    write_mesh,
    write_png,
)

VALIDATION = (94, 95, 180, 204, 205, 213, 254, 284, 327, 353, 483, 522, 608, 609, 612)
CENTRE, RADIUS = np.array([10.0, -20.0, 30.0]), 50.0  # mm, RAS+


def affine_of(spacing: tuple[float, float, float], order: str, angle: float = 0.0) -> np.ndarray:
    """Axes in the order of e.g. "PIR", turned by `angle` degrees; CENTRE is voxel (40, 40, 40)."""
    axes = np.zeros((3, 3))
    for column, letter in enumerate(order):
        row = next(i for i, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        axes[row, column] = 1 if letter in "RAS" else -1
    x, y, z = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    a = np.radians(angle)
    turn = np.eye(3) + np.sin(a) * cross + (1 - np.cos(a)) * cross @ cross
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * spacing
    affine[:3, 3] = CENTRE - affine[:3, :3] @ [40, 40, 40]
    return affine


def ball(affine: np.ndarray, noise: float = 0.0) -> np.ndarray:
    """A ball of 100 about CENTRE in 81 voxels cubed, with an edge as soft as a scanner's."""
    index = np.indices((81, 81, 81)).reshape(3, -1)
    away = np.linalg.norm(affine[:3, :3] @ index + affine[:3, 3:] - CENTRE[:, None], axis=0)
    values = 100 * np.clip(0.5 + (RADIUS - away) / 4, 0, 1).reshape(81, 81, 81)
    return np.abs(values + np.random.default_rng(1).normal(0, noise, values.shape))


def volume_ml(surface: Surface) -> float:
    """The enclosed volume; negative where the triangles look inward."""
    a, b, c = surface.points.astype(float)[surface.triangles].transpose(1, 0, 2)
    return float(np.sum(a * np.cross(b, c)) / 6000)


@cache
def scan(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    return image.get_fdata(dtype=np.float32), image.affine


@cache
def skin(path: Path) -> Surface:
    return skin_surface(*scan(path))


@pytest.fixture(scope="module")
def sphere() -> Surface:
    affine = affine_of((2, 2, 2), "RAS")
    return skin_surface(ball(affine), affine)


@pytest.fixture
def head(heads: Path) -> Surface:
    return skin(heads / "val" / "ixi095.nii.gz")


def silhouette(picture: np.ndarray) -> np.ndarray:
    return np.abs(picture - 255 * np.array(BACKGROUND)).max(axis=2) > 8


# threshold and surface


@pytest.mark.heads
@pytest.mark.parametrize("number", VALIDATION)
def test_every_head_is_one_closed_surface_as_large_as_a_head(heads: Path, number: int) -> None:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    surface = skin(heads / "val" / f"ixi{number:03}.nii.gz")
    edges = np.sort(surface.triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    count = len(surface.points)
    shared = coo_matrix((np.ones(len(edges)), tuple(edges.T)), (count, count)).tocsr()
    assert not np.any(shared.data % 2), "an edge with a triangle on one side only"
    _, parts = connected_components(shared, directed=False)
    outer = np.argmax(np.bincount(parts))
    skin_only = Surface(
        surface.points, surface.triangles[parts[surface.triangles[:, 0]] == outer], surface.normals
    )
    assert 3000 < volume_ml(skin_only) < 6500
    assert abs(volume_ml(skin_only) / volume_ml(surface) - 1) < 0.1


@pytest.mark.heads
@pytest.mark.parametrize("name", ["adi", "uih1"])
def test_native_scans_give_a_head_too(heads: Path, name: str) -> None:
    assert 3000 < volume_ml(skin(heads / "native" / f"{name}.nii.gz")) < 6500


@pytest.mark.heads
@pytest.mark.parametrize("change", ["noise", "bias", "inverted", "padded", "not a number"])
def test_the_head_stays_the_same_size_in_a_worse_scan(heads: Path, change: str) -> None:
    path = heads / "val" / "ixi608.nii.gz"
    array, affine = scan(path)
    bright = np.percentile(array, 99)
    if change == "noise":
        random = np.random.default_rng(1)
        array = np.hypot(*(part + random.normal(0, bright / 20, array.shape) for part in (array, 0)))
    elif change == "bias":
        array = array * np.exp(np.linspace(-0.7, 0.7, array.shape[0]))[:, None, None]
    elif change == "inverted":
        array = np.where(array > 0.13 * bright, np.maximum(1.1 * bright - array, 0.1 * bright), array)
    elif change == "padded":
        array = np.pad(array, ((0, 0), (0, 60), (30, 30)))
    else:
        array = np.where(np.arange(array.shape[0])[:, None, None] < 3, np.nan, array)
    assert volume_ml(skin_surface(array, affine)) == pytest.approx(volume_ml(skin(path)), rel=0.1)


@pytest.mark.heads
def test_the_threshold_follows_the_units_of_the_scan(heads: Path) -> None:
    array, _ = scan(heads / "val" / "ixi095.nii.gz")
    expected = 3 * skin_threshold(array, (2, 2, 2)) - 50
    assert skin_threshold(3 * array - 50, (2, 2, 2)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("spacing", "order", "angle"),
    [((2, 2, 2), "RAS", 0), ((1.5, 2, 3), "PIR", 0), ((3, 1.5, 2), "LSA", 25), ((2, 3, 2), "SPL", -70)],
)
def test_a_ball_has_its_size_and_place_whatever_the_affine(spacing, order, angle) -> None:
    affine = affine_of(spacing, order, angle)
    surface = skin_surface(ball(affine), affine, threshold=50)
    away = surface.points - CENTRE
    assert np.linalg.norm(away, axis=1) == pytest.approx(RADIUS, abs=0.4)
    assert np.linalg.norm(away, axis=1).mean() == pytest.approx(RADIUS, abs=0.2)
    assert np.sum(surface.normals * away, axis=1).min() > 0.9 * RADIUS
    assert volume_ml(surface) == pytest.approx(4 / 3 * np.pi * RADIUS**3 / 1000, rel=0.02)


def test_a_fine_scan_is_no_different_from_a_coarse_one() -> None:
    affine = affine_of((0.7, 0.5, 0.7), "RAS")
    affine[:3, 3] -= 0.5 * RADIUS  # the ball is cut by the field of view
    surface = skin_surface(ball(affine), affine, threshold=50)
    corner = affine[:3, :3] @ [81, 81, 81] + affine[:3, 3]
    assert surface.points.max(axis=0) == pytest.approx(corner, abs=1.5)
    assert volume_ml(surface) > 0


def test_noise_in_the_air_leaves_no_speckle(sphere: Surface) -> None:
    affine = affine_of((2, 2, 2), "RAS")
    surface = skin_surface(ball(affine, noise=5), affine)
    assert np.linalg.norm(surface.points - CENTRE, axis=1) == pytest.approx(RADIUS, abs=3)
    assert volume_ml(surface) == pytest.approx(volume_ml(sphere), rel=0.02)


@pytest.mark.parametrize(
    ("array", "threshold", "why"),
    [
        (np.zeros((20, 20, 20)), None, "shows no head"),
        (np.full((20, 20, 20), np.nan), None, "shows no head"),
        (np.arange(8000.0).reshape(20, 20, 20), 1e4, "nothing brighter than the threshold 10000"),
        (np.zeros((20, 20)), None, "needs a 3D scan"),
    ],
)
def test_what_shows_no_head_is_refused_in_one_sentence(array, threshold, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        skin_surface(array, np.eye(4), threshold)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


# pictures


@pytest.mark.heads
def test_the_frontal_view_is_filled_by_a_centred_face(head: Surface) -> None:
    (picture,) = render(head, size=(200, 200))
    assert picture.shape == (200, 200, 3) and picture.dtype == np.uint8
    shown = silhouette(picture)
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    assert len(rows) > 160 and 100 < len(columns) < 180
    assert (columns[0] + columns[-1]) / 2 == pytest.approx(100, abs=6)
    assert not shown[0].any() and not shown[:, [0, -1]].any()
    assert picture[shown].std() > 20, "a face has light and shade"


@pytest.mark.heads
def test_the_nose_points_left_in_the_left_profile_and_right_in_the_right_one(head: Surface) -> None:
    left, right = map(silhouette, render(head, ("left profile", "right profile"), (200, 200)))
    frame, nose = frame_of(head), head.points[head.points[:, 1].argmax()]
    row = 100 - 200 * (nose[2] - frame.centre[2]) / frame.extent
    assert np.median(np.nonzero(left[:, np.flatnonzero(left.any(axis=0))[0]])) == pytest.approx(row, abs=8)
    mirrored = right[:, ::-1]
    assert np.sum(left & mirrored) > 0.97 * np.sum(left | mirrored)


@pytest.mark.heads
def test_the_three_quarter_view_shows_the_patients_left_unless_told(head: Surface) -> None:
    one, left, right = render(head, ("three-quarter", "LEFT_three quarter", "right three-quarter"), (80, 80))
    assert np.array_equal(one, left) and not np.array_equal(left, right)


def test_the_same_surface_gives_the_same_pixels(sphere: Surface) -> None:
    first, second = (render(sphere, ("frontal", "profile"), (120, 90)) for _ in range(2))
    assert all(map(np.array_equal, first, second)) and first[0].shape == (90, 120, 3)


def test_a_frame_keeps_two_surfaces_aligned(sphere: Surface) -> None:
    moved = Surface(sphere.points + np.float32([0, 0, 5]), sphere.triangles, sphere.normals)
    frame = frame_of(sphere)
    before, after = (np.argwhere(silhouette(render(s, frame=frame, size=(100, 100))[0])) for s in (sphere, moved))
    assert (before.mean(axis=0) - after.mean(axis=0))[0] == pytest.approx(5 / frame.extent * 100, abs=0.5)


def test_rendering_says_nothing_on_stderr(sphere: Surface, capfd, monkeypatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    render(sphere, size=(50, 50))
    assert capfd.readouterr() == ("", "")


def test_an_unknown_view_is_refused_with_the_known_ones(sphere: Surface) -> None:
    with pytest.raises(InputError, match="no view 'behind'; choose from frontal, three-quarter"):
        render(sphere, ("behind",))


def test_without_opengl_it_is_said_what_to_install(sphere: Surface, monkeypatch) -> None:
    window = Mock(GetInitialized=Mock(return_value=False))
    monkeypatch.setattr("vtkmodules.vtkRenderingCore.vtkRenderWindow", Mock(return_value=window))
    with pytest.raises(InputError, match="install libegl1"):
        render(sphere)
    window.Render.assert_not_called()


def test_a_surface_compared_with_itself_gives_two_equal_columns(sphere: Surface) -> None:
    picture = compare_image(sphere, sphere, ("frontal", "profile"), size=(100, 80))
    assert picture.shape == (2 * (80 + LABEL_PIXELS), 200, 3) and picture.dtype == np.uint8
    rows = picture.reshape(2, 80 + LABEL_PIXELS, 200, 3)
    original, refaced = rows[:, :, :100], rows[:, :, 100:]
    assert np.array_equal(original[:, LABEL_PIXELS:], refaced[:, LABEL_PIXELS:])
    labels = original[:, :LABEL_PIXELS], refaced[:, :LABEL_PIXELS]
    assert not np.array_equal(*labels) and all(label.max() > 200 for label in labels)


def test_a_picture_reads_back_from_its_png(sphere: Surface, tmp_path: Path) -> None:
    import SimpleITK as sitk

    (picture,) = render(sphere, size=(60, 40))
    write_png(picture, tmp_path / "face.png")
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "face.png")), picture)


# meshes


def test_gifti_reads_back_with_the_same_points_in_scanner_space(sphere: Surface, tmp_path: Path) -> None:
    write_mesh(sphere, tmp_path / "skin.gii")
    points, triangles = nib.load(tmp_path / "skin.gii").darrays
    assert np.array_equal(points.data, sphere.points) and np.array_equal(triangles.data, sphere.triangles)
    assert nib.nifti1.xform_codes.label[points.coordsys.dataspace] == "scanner"


def test_stl_reads_back_with_the_same_triangles_and_says_ras(sphere: Surface, tmp_path: Path) -> None:
    write_mesh(sphere, tmp_path / "skin.STL")
    data = (tmp_path / "skin.STL").read_bytes()
    facets = np.frombuffer(data[84:], [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    assert np.array_equal(facets["corners"], sphere.points[sphere.triangles])
    assert b"SPACE=RAS" in data[:80]


def test_ply_reads_back_with_the_same_points_and_says_ras(sphere: Surface, tmp_path: Path) -> None:
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkIOPLY import vtkPLYReader

    write_mesh(sphere, tmp_path / "skin.ply")
    reader = vtkPLYReader()
    reader.SetFileName(str(tmp_path / "skin.ply"))
    reader.Update()
    assert np.array_equal(vtk_to_numpy(reader.GetOutput().GetPoints().GetData()), sphere.points)
    assert reader.GetOutput().GetNumberOfPolys() == len(sphere.triangles)
    assert b"comment SPACE=RAS" in (tmp_path / "skin.ply").read_bytes()[:200]


def test_what_cannot_be_written_leaves_nothing_behind(sphere: Surface, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"end its name in \.gii, \.stl, \.ply"):
        write_mesh(sphere, tmp_path / "skin.obj")
    for name in ("skin.gii", "skin.stl", "skin.ply"):
        with pytest.raises(InputError, match="No such file or directory"):
            write_mesh(sphere, tmp_path / "missing" / name)
    assert not Counter(tmp_path.rglob("*"))


def test_vtk_gets_the_surface_with_its_normals(sphere: Surface) -> None:
    data = polydata(sphere)
    assert data.GetNumberOfPoints() == len(sphere.points)
    assert data.GetNumberOfPolys() == len(sphere.triangles)
    assert data.GetPointData().GetNormals().GetTuple3(0) == pytest.approx(sphere.normals[0])
