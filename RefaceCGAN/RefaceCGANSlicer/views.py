"""Faces: the original and the refaced scan side by side, in 3D and in slices.

    faces = show_faces(original_node, refaced_node)
    faces.look("three-quarter")
    faces.go_to("nose")
    faces.set_threshold(70)
    restore_layout()          # the layout from before; show_faces comes back
    remove()                  # and nothing of the faces is left in the scene

Skin models are neither saved with the scene nor listed among its data. They lie in world coordinates: transforms
above the scans are hardened into them. The skins may come ready from elsewhere, as the panel has the engine make
them; without, they are made here, which takes a second or two.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.rendering import skin_surface as surface
from RefaceCGANLib.volume.volume import check_output

from . import layout
from . import skin_display as skin
from .child_process import _
from .places import Place, places_of
from .scene import face_region_of, files_of, read_upright, region_node_of, volume_of
from .skin_display import Skin, skin_of

SLIDER = 0.3, 3.0  # of the way from air to the automatic threshold: where the slider begins and ends
RENDERINGS = "surface", "volume"
THUMBNAIL = 128  # pixels


class Faces:
    """Two faces on screen; made by `show_faces`. Both skins begin at one threshold, that of the original."""

    def __init__(
        self,
        original_node: Any,
        refaced_node: Any,
        threshold: float | None = None,
        quick: bool = False,
        skins: tuple[Skin, Skin] | None = None,
    ) -> None:
        layout.check_window()
        if skins is None:
            first = skin_of(original_node, threshold, quick)
            skins = first, skin_of(refaced_node, first.threshold, quick)
        array, affine = volume_of(original_node)
        self.original, self.refaced = original_node, refaced_node
        self.upright = read_upright(refaced_node)
        self._skins = list(skins)
        self.automatic = skins[0].threshold
        """The threshold that was found in the original, in its units."""
        if threshold is not None:
            self.automatic = surface.skin_threshold(
                np.ascontiguousarray(array), np.linalg.norm(affine[:3, :3], axis=0)
            )
        self.threshold = skins[0].threshold
        self.rendering = RENDERINGS[0]
        self.frame = skin.frame_upright(skins[0].surface, self.upright)
        self._places: dict[str, Place] | None = None
        layout.activate()  # nothing has changed before
        scene = original_node.GetScene()
        layout.remove_marked(scene)
        self._views = layout.three_d_views()
        self._models = [skin.add_model(scene, view) for view in self._views]
        self._renderings: list[Any] = []
        self._show_skins()
        for view in self._views:
            skin.light(view)
        if original_node is refaced_node:
            layout.label_original(_("Refaced (no original)"))
        self.look("frontal")
        self._show_slices()
        self.go_to("nose")
        self.set_fade(1)

    @property
    def nodes(self) -> tuple[Any, Any]:
        """The volume nodes shown: original, refaced."""
        return self.original, self.refaced

    @property
    def limits(self) -> tuple[float, float]:
        """Between which thresholds a slider makes sense."""
        air = self._skins[0].darkest
        low, high = (air + share * (self.automatic - air) for share in SLIDER)
        return low, high

    @property
    def places(self) -> tuple[str, ...]:
        """The names of the places that `go_to` knows in this head."""
        return tuple(self._found())

    def is_whole(self) -> bool:
        """Whether all that was put into the scene to show the faces is still there."""
        scene = slicer.mrmlScene
        return all(scene.IsNodePresent(node) for node in (*self._models, *self._renderings, *self.nodes))

    def look(self, name: str) -> None:
        """Turn both cameras to one of `skin_surface.VIEWS`, as the head itself lies; InputError for
        another name."""
        for view in self._views:
            skin.aim(view, self.frame, name, self.upright)

    def fit(self) -> None:
        """Let the slices show the whole scan."""
        for logic in layout.slice_logics():
            logic.FitSliceToBackground()

    def turn_slices(self, orientation: str) -> None:
        """Let both slices lie "Axial", "Coronal" or "Sagittal"; InputError for another word."""
        if orientation not in layout.ORIENTATIONS:
            message = _("There is no orientation {name}; choose from {names}.")
            raise InputError(message.format(name=repr(orientation), names=", ".join(layout.ORIENTATIONS)))
        for logic in layout.slice_logics():
            node = logic.GetSliceNode()
            if node.GetOrientation() != orientation:
                node.SetOrientation(orientation)

    def go_to(self, name: str, mm: float | None = None) -> None:
        """Let both slices go through a place of the face (see `places`), with `mm` of it to be seen about the
        middle of the views, by default the whole scan; InputError for another name."""
        if name not in self._found():
            message = _("There is no place {name}; choose from {names}.")
            raise InputError(message.format(name=repr(name), names=", ".join(self.places)))
        place = self._found()[name]
        self.turn_slices(place.orientation)
        self.fit()
        for logic in layout.slice_logics():
            node = logic.GetSliceNode()
            if mm is None:
                node.JumpSliceByOffsetting(*place.point)
                continue
            across, up, deep = node.GetFieldOfView()
            scale = mm / min(across, up)
            node.SetFieldOfView(scale * across, scale * up, deep)
            node.JumpSliceByCentering(*place.point)

    def set_threshold(self, value: float, quick: bool = False, skins: tuple[Skin, Skin] | None = None) -> None:
        """Let both skins begin at a value. quick: coarser, in a fifth of the time, while a slider is dragged;
        skins: made already, at that value.

        Raises InputError where nothing is brighter than that; then all stays as it is."""
        self._skins = list(skins or (skin_of(node, value, quick) for node in self.nodes))
        self.threshold = value
        self._show_skins()
        self._update_renderings()

    def show_refaced(self, node: Any, quick: bool = False, made: Skin | None = None) -> None:
        """Show another face of the same original on the right; camera, threshold and fade stay.

        quick: as in `set_threshold`; `refine` then does the rest, when there is time. made: its skin."""
        self._skins[1] = made or skin_of(node, self.threshold, quick)
        self.refaced = node
        self._show_skins()
        self._show_slices()
        rendering = self.rendering
        self.set_rendering(RENDERINGS[0])
        self.set_rendering(rendering)

    @property
    def coarse(self) -> tuple[bool, bool]:
        """Which skins, original's and refaced one's, were made quickly."""
        return self._skins[0].quick, self._skins[1].quick

    def refine(self, skins: tuple[Skin | None, Skin | None] = (None, None)) -> None:
        """Draw at full resolution what was drawn quickly. skins: those that are made already."""
        for index, (node, made) in enumerate(zip(self.nodes, skins, strict=True)):
            if self._skins[index].quick:
                self._skins[index] = made or skin_of(node, self.threshold)
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
        """How much of the refaced scan the right slice shows: 0 the original, 1 the refaced, between them a
        blend. The left one always shows the original."""
        layout.slice_logics()[1].GetSliceCompositeNode().SetForegroundOpacity(share)

    def show_face_region(self, shown: bool) -> None:
        """Draw the outline of the face region in the slices, where the result has one, or hide it."""
        segmentation = region_node_of(self.refaced)
        if segmentation is not None:
            segmentation.GetDisplayNode().SetVisibility(shown)

    def thumbnail(self, size: int = THUMBNAIL) -> np.ndarray:
        """The refaced face from the front, (size, size, 3) uint8."""
        made = self._skins[1].surface
        facing = made if self.upright is None else surface.turned(made, self.upright)
        return surface.render(facing, ("frontal",), (size, size))[0]

    def _found(self) -> dict[str, Place]:
        if self._places is None:
            region = face_region_of(self.refaced)
            affine = volume_of(self.original)[1]
            self._places = places_of(self._skins[0].surface, self.upright, region, affine)
        return self._places

    def _show_skins(self) -> None:
        for model, made, node in zip(self._models, self._skins, self.nodes, strict=True):
            skin.set_surface(model, made.surface, node)

    def _show_slices(self) -> None:
        for logic, foreground in zip(layout.slice_logics(), (None, self.refaced.GetID()), strict=True):
            composite = logic.GetSliceCompositeNode()
            composite.SetBackgroundVolumeID(self.original.GetID())
            composite.SetForegroundVolumeID(foreground)
            composite.SetLabelVolumeID(None)

    def _update_renderings(self) -> None:
        first = self._skins[0]
        for display in self._renderings:
            skin.set_rendering_threshold(display, self.threshold, first.darkest, first.brightest)


def show_faces(
    original_node: Any,
    refaced_node: Any,
    threshold: float | None = None,
    quick: bool = False,
    skins: tuple[Skin, Skin] | None = None,
) -> Faces:
    """Show two scans of one head: two linked 3D views, original left, refaced right, above two linked slices
    likewise. `threshold`: where the skin begins (default: found in the original). quick: as in
    `Faces.show_refaced`. skins: of the two, made already and at one threshold.

    The same node twice shows it on both sides, where there is no original, and says so on the left.

    Raises InputError where a node holds no scan, the original shows no head, or Slicer has no window; then
    nothing has changed.
    """
    return Faces(original_node, refaced_node, threshold, quick, skins)


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
    before = skin_of(original_node, threshold)
    after = skin_of(refaced_node, before.threshold)
    surface.write_png(surface.compare_image(before.surface, after.surface, views), path)
    return path
