"""Faces: the original and the refaced scan side by side, in 3D and in slices.

    faces = show_faces(original_node, refaced_node)
    faces.look("three-quarter")
    faces.set_threshold(70)
    restore_layout()          # the layout from before; show_faces comes back
    remove()                  # and nothing of the faces is left in the scene

Skin models are neither saved with the scene nor listed among its data. They lie in world coordinates: transforms
above the scans are hardened into them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from RefaceCGANLib import surface
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.volume import check_output

from . import layout, skin
from .child import _
from .scene import REGION, files_of, volume_of

COARSE_MM = 2.4  # voxels of a quick surface: a fifth of the time, and still the same face
NOSE_MM = 40.0  # the slices go through the point this far behind the tip of the nose
SLIDER = 0.3, 3.0  # of the way from air to the automatic threshold: where the slider begins and ends
RENDERINGS = "surface", "volume"
THUMBNAIL = 128  # pixels


class Faces:
    """Two faces on screen; made by `show_faces`. Both skins begin at one threshold, that of the original."""

    def __init__(
        self, original_node: Any, refaced_node: Any, threshold: float | None = None, quick: bool = False
    ) -> None:
        array, affine = _volume_of(original_node)
        self.original, self.refaced = original_node, refaced_node
        self.automatic = surface.skin_threshold(array, np.linalg.norm(affine[:3, :3], axis=0))
        """The threshold that was found in the original, in its units."""
        self.threshold = self.automatic if threshold is None else threshold
        self.rendering = RENDERINGS[0]
        few = array[::4, ::4, ::4]
        self._air, self._brightest = float(np.percentile(few, 0.5)), float(np.percentile(few, 99.9))
        self._surfaces = [self._surface(node, self.threshold, quick) for node in self.nodes]
        self._coarse = [quick, quick]
        self.frame = surface.frame_of(self._surfaces[0])
        layout.activate()  # nothing has changed before
        scene = original_node.GetScene()
        layout.remove_marked(scene)
        self._views = layout.three_d_views()
        self._models = [skin.add_model(scene, view) for view in self._views]
        self._renderings: list[Any] = []
        self._show_skins()
        for view in self._views:
            skin.light(view)
        self.look("frontal")
        self._show_slices()
        self._go_to_face()
        self.set_fade(1)

    @property
    def nodes(self) -> tuple[Any, Any]:
        """The volume nodes shown: original, refaced."""
        return self.original, self.refaced

    @property
    def limits(self) -> tuple[float, float]:
        """Between which thresholds a slider makes sense."""
        low, high = (self._air + share * (self.automatic - self._air) for share in SLIDER)
        return low, high

    def look(self, name: str) -> None:
        """Turn both cameras to one of `RefaceCGANLib.surface.VIEWS`; InputError for another name."""
        for view in self._views:
            skin.aim(view, self.frame, name)

    def set_threshold(self, value: float, quick: bool = False) -> None:
        """Let both skins begin at a value. quick: coarser, in a fifth of the time, while a slider is dragged.

        Raises InputError where nothing is brighter than that; then all stays as it is."""
        self._surfaces = [self._surface(node, value, quick) for node in self.nodes]
        self._coarse = [quick, quick]
        self.threshold = value
        self._show_skins()
        self._update_renderings()

    def show_refaced(self, node: Any, quick: bool = False) -> None:
        """Show another face of the same original on the right; camera, threshold and fade stay.

        quick: as in `set_threshold`; `refine` then does the rest, when there is time."""
        self._surfaces[1] = self._surface(node, self.threshold, quick)
        self._coarse[1] = quick
        self.refaced = node
        self._show_skins()
        self._show_slices()
        rendering = self.rendering
        self.set_rendering(RENDERINGS[0])
        self.set_rendering(rendering)

    def refine(self) -> None:
        """Draw at full resolution what was drawn quickly."""
        for index, node in enumerate(self.nodes):
            if self._coarse[index]:
                self._surfaces[index] = self._surface(node, self.threshold, quick=False)
        self._coarse = [False, False]
        self._show_skins()

    def set_rendering(self, kind: str) -> None:
        """Show the skin as "surface" or the scan as "volume" rendering; InputError for another word."""
        if kind not in RENDERINGS:
            message = _("There is no rendering {kind}; choose from {kinds}.")
            raise InputError(message.format(kind=repr(kind), kinds=", ".join(RENDERINGS)))
        self.rendering = kind
        for model in self._models:
            model.GetDisplayNode().SetVisibility(kind == RENDERINGS[0])
        for display in self._renderings:
            skin.drop_rendering(display)
        self._renderings = []
        if kind == RENDERINGS[1]:
            pairs = zip(self.nodes, self._views, strict=True)
            self._renderings = [skin.add_rendering(node, view) for node, view in pairs]
            self._update_renderings()
            for display in self._renderings:
                display.SetVisibility(True)

    def set_fade(self, share: float) -> None:
        """How much of the refaced scan the slices show: 0 the original, 1 the refaced, between them a blend."""
        for logic in layout.slice_logics():
            logic.GetSliceCompositeNode().SetForegroundOpacity(share)

    def show_face_region(self, shown: bool) -> None:
        """Draw the outline of the face region in the slices, where the result has one, or hide it."""
        segmentation = self.refaced.GetNodeReference(REGION)
        if segmentation is not None:
            segmentation.GetDisplayNode().SetVisibility(shown)

    def thumbnail(self, size: int = THUMBNAIL) -> np.ndarray:
        """The refaced face from the front, (size, size, 3) uint8."""
        return surface.render(self._surfaces[1], ("frontal",), (size, size), self.frame)[0]

    @staticmethod
    def _surface(node: Any, threshold: float, quick: bool) -> surface.Surface:
        array, affine = _volume_of(node)
        return surface.skin_surface(*(coarse(array, affine) if quick else (array, affine)), threshold)

    def _show_skins(self) -> None:
        for model, made, node in zip(self._models, self._surfaces, self.nodes, strict=True):
            skin.set_surface(model, made, node)

    def _show_slices(self) -> None:
        for logic in layout.slice_logics():
            composite = logic.GetSliceCompositeNode()
            composite.SetBackgroundVolumeID(self.original.GetID())
            composite.SetForegroundVolumeID(self.refaced.GetID())
            composite.SetLabelVolumeID(None)

    def _go_to_face(self) -> None:
        """Let the slices go through the face."""
        points = self._surfaces[0].points
        right, front, up = (float(mm) for mm in points[np.argmax(points[:, 1])])
        for logic in layout.slice_logics():
            logic.FitSliceToBackground()
            logic.GetSliceNode().JumpSliceByOffsetting(right, front - NOSE_MM, up)

    def _update_renderings(self) -> None:
        for display in self._renderings:
            skin.set_rendering_threshold(display, self.threshold, self._air, self._brightest)


def show_faces(
    original_node: Any, refaced_node: Any, threshold: float | None = None, quick: bool = False
) -> Faces:
    """Show two scans of one head: two linked 3D views, original left, refaced right, above slices that fade from
    one to the other. `threshold`: where the skin begins (default: found in the original). quick: as in
    `Faces.show_refaced`.

    Raises InputError where a node holds no scan, the original shows no head, or Slicer has no window; then
    nothing has changed.
    """
    return Faces(original_node, refaced_node, threshold, quick)


def restore_layout() -> None:
    """Go back to the layout from before, if the faces are shown."""
    layout.restore()


def remove(scene: Any = None) -> None:
    """Go back to the layout from before, and remove what `show_faces` added; the views stay, empty."""
    layout.clear(scene or slicer.mrmlScene)


def compare_image(
    original_node: Any,
    refaced_node: Any,
    path: str | os.PathLike[str],
    views: tuple[str, ...] = ("frontal", "three-quarter"),
    threshold: float | None = None,
) -> Path:
    """Write a PNG picture: original left, refaced right, a row for each view; needs no window.

    Raises InputError for what cannot be drawn or written, and for a path that is a file of one of the scans.
    """
    path = check_output(path, files_of(original_node, refaced_node), (".png",))
    array, affine = _volume_of(original_node)
    if threshold is None:
        threshold = surface.skin_threshold(array, np.linalg.norm(affine[:3, :3], axis=0))
    skins = [surface.skin_surface(*_volume_of(node), threshold) for node in (original_node, refaced_node)]
    surface.write_png(surface.compare_image(*skins, views), path)
    return path


def _volume_of(node: Any) -> tuple[np.ndarray, np.ndarray]:
    """`volume_of` with the voxels laid down as the surface is quickest with."""
    array, affine = volume_of(node)
    return np.ascontiguousarray(array), affine


def coarse(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means of blocks of about `COARSE_MM`, and their matrix to RAS+ mm; array (I, J, K), affine (4, 4)."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    steps = [max(1, round(COARSE_MM / mm)) for mm in spacing]
    counts = [n // step for n, step in zip(array.shape, steps, strict=True)]
    kept = array[tuple(slice(n * step) for n, step in zip(counts, steps, strict=True))]
    blocks = kept.reshape([part for pair in zip(counts, steps, strict=True) for part in pair])
    to_fine = np.diag([*steps, 1.0])
    to_fine[:3, 3] = (np.array(steps) - 1) / 2
    return blocks.mean(axis=(1, 3, 5), dtype=np.float32), affine @ to_fine
