"""The skin in a 3D view: its material, the lights, the camera, as a surface or as a volume rendering.

Colour, lights and camera are those of the pictures (`skin_surface.render`), so a face on screen looks as
it does in a report. Nothing of it is saved with the scene: it takes a second to make anew, and the original's
skin would carry its face into a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk
from RefaceCGANLib.errors import InputError
from RefaceCGANLib.rendering import skin_surface as surface
from RefaceCGANLib.rendering.skin_surface import SKIN, VIEW_ANGLE, VIEWS, Frame, Surface, add_lights, polydata

from .child_process import _
from .layout import camera_of, mark, renderer_of
from .scene import SKIN_OF, remove, volume_of

FLESH = 0.85, 0.55, 0.45  # behind the skin in a volume rendering, where the ray goes deeper
RAMP = 0.9, 1.1  # of the skin threshold: where a volume rendering turns from clear to opaque


@dataclass(frozen=True)
class Skin:
    """The skin of one scan. threshold: the intensity at which it begins; darkest, brightest: of the scan
    (percentiles 0.5 and 99.9); quick: made of coarse voxels; picture: from the front, (H, W, 3) uint8, where
    there is one."""

    surface: Surface
    threshold: float
    darkest: float
    brightest: float
    quick: bool = False
    picture: np.ndarray | None = None

    @classmethod
    def answered(cls, answer: dict[str, Any], quick: bool) -> Skin:
        """What the engine's command `skin` answers."""
        made = Surface(answer["points"], answer["triangles"], answer["normals"])
        return cls(made, answer["threshold"], answer["darkest"], answer["brightest"], quick, answer["picture"])


def skin_of(node: Any, threshold: float | None = None, quick: bool = False) -> Skin:
    """The skin of a volume node, made here and now, without a picture: for scripts, and where there is no engine.
    threshold: found in the scan by default; quick: in a fifth of the time. Raises InputError for no head."""
    array, affine = volume_of(node)
    array = np.ascontiguousarray(array)
    if threshold is None:
        threshold = surface.skin_threshold(array, np.linalg.norm(affine[:3, :3], axis=0))
    few = array[::4, ::4, ::4]
    made = surface.skin_surface(*(surface.coarse(array, affine) if quick else (array, affine)), threshold)
    return Skin(made, threshold, float(np.percentile(few, 0.5)), float(np.percentile(few, 99.9)), quick)


def add_model(scene: Any, view: Any) -> Any:
    """An empty skin model that only one 3D view shows, and no list of the scene's data: a saved subject hierarchy
    would keep its name."""
    model = slicer.vtkMRMLModelNode()
    model.SetHideFromEditors(True)
    scene.AddNode(model)
    model.CreateDefaultDisplayNodes()
    display = model.GetDisplayNode()
    display.SetColor(*SKIN)
    display.SetAmbient(0.08)
    display.SetDiffuse(0.9)
    display.SetSpecular(0.12)
    display.SetPower(20)
    display.SetInterpolation(display.PhongInterpolation)
    display.SetScalarVisibility(False)
    display.SetVisibility2D(False)
    display.AddViewNodeID(view.GetID())
    mark(model, display)
    return model


def set_surface(model: Any, surface: Surface, volume_node: Any) -> None:
    """Fill a skin model with the skin of a volume, and name it after that."""
    model.SetName(_("{name} skin").format(name=volume_node.GetName()))
    model.SetAndObservePolyData(polydata(surface))
    model.SetNodeReferenceID(SKIN_OF, volume_node.GetID())


def light(view: Any) -> None:
    """Key, fill and head light that move with the camera, instead of Slicer's one head light."""
    renderer = renderer_of(view)
    renderer.RemoveAllLights()
    add_lights(renderer)


def aim(view: Any, frame: Frame, name: str, upright: np.ndarray | None = None) -> None:
    """Turn a view's camera to one of `skin_surface.VIEWS`, so that the frame fills the view. upright: the
    rotation from RAS to the head's own axes, in which the view is meant (see `frame_upright`).

    Raises InputError for another name.
    """
    if name not in VIEWS:
        message = _("There is no view {name}; choose from {names}.")
        raise InputError(message.format(name=repr(name), names=", ".join(VIEWS)))
    turn = np.eye(3) if upright is None else upright.T
    camera, centre = camera_of(view), np.array(frame.centre)
    with slicer.util.NodeModify(camera):
        camera.SetViewAngle(VIEW_ANGLE)
        camera.SetFocalPoint(*centre)
        camera.SetPosition(*(centre + turn @ (np.array(frame.position(*VIEWS[name])) - centre)))
        camera.SetViewUp(*(turn @ (0, 0, 1)))
    camera.ResetClippingRange()


def frame_upright(made: Surface, upright: np.ndarray | None = None) -> Frame:
    """`surface.frame_of` in the head's own axes; its centre is in RAS+ mm."""
    if upright is None:
        return surface.frame_of(made)
    frame = surface.frame_of(surface.turned(made, upright))
    x, y, z = (float(mm) for mm in upright.T @ np.array(frame.centre))
    return Frame((x, y, z), frame.extent)


def add_rendering(volume_node: Any, view: Any) -> Any:
    """A volume rendering of a scan that only one 3D view shows: its display node."""
    logic = slicer.modules.volumerendering.logic()
    display = logic.CreateVolumeRenderingDisplayNode()
    volume_node.GetScene().AddNode(display)
    display.UnRegister(logic)  # which handed it over; the scene holds it now
    display.AddViewNodeID(view.GetID())
    volume_node.AddAndObserveDisplayNodeID(display.GetID())
    logic.UpdateDisplayNodeFromVolumeNode(display, volume_node, None, None, False)
    mark(display, display.GetVolumePropertyNode())
    return display


def drop_rendering(display: Any) -> None:
    """Remove a volume rendering from the scene, where it still is."""
    scene = slicer.mrmlScene
    remove(scene, *filter(None, (display.GetVolumePropertyNode() if display.GetScene() else None, display)))


def set_rendering_threshold(display: Any, threshold: float, air: float, brightest: float) -> None:
    """Let a volume rendering begin at the skin threshold; `air` and `brightest` are the scan's range."""
    clear, solid = (air + share * (threshold - air) for share in RAMP)
    opacity, colour = vtk.vtkPiecewiseFunction(), vtk.vtkColorTransferFunction()
    for value, amount in ((air, 0), (clear, 0), (solid, 1), (max(brightest, solid + 1), 1)):
        opacity.AddPoint(value, amount)
    colour.AddRGBPoint(clear, *SKIN)
    colour.AddRGBPoint(max(brightest, solid + 1), *FLESH)
    node = display.GetVolumePropertyNode()
    material = node.GetVolumeProperty()
    material.SetScalarOpacity(opacity)
    material.SetColor(colour)
    material.DisableGradientOpacityOn()
    material.SetInterpolationTypeToLinear()
    material.ShadeOn()
    material.SetAmbient(0.1)
    material.SetDiffuse(0.9)
    material.SetSpecular(0.12)
    material.SetSpecularPower(20)
