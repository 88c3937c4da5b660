"""Pictures of a MuJoCo simulation, drawn without a window by a camera anywhere.

It also draws ornaments, shapes that are never simulated, and segmentations; what makes pictures slow on a CPU is left
out.
"""

import atexit
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco as compiled_mujoco
import numpy as np


mujoco: Any = compiled_mujoco  # compiled bindings: pyright sees no names in them

FRAMEBUFFER = 512  # pixels; the largest image side
FIRST_ORNAMENT = 10_000  # the id of the first ornament in a segmentation, above every geom id of a model
UPRIGHT = tuple(np.eye(3).ravel().tolist())


@dataclass(frozen=True)
class CameraPose:
    """Where a camera stands: the point it looks at (metres), its distance (metres) and its angles (degrees)."""

    lookat: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float
    fovy: float = 45.0

    @property
    def view_width(self) -> float:
        return 2.0 * float(np.tan(np.deg2rad(self.fovy) / 2.0))

    @property
    def axes(self) -> np.ndarray:
        """Right, down and forward, float [3, 3]."""
        azimuth, elevation = np.deg2rad(self.azimuth), np.deg2rad(self.elevation)
        flat = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
        forward = np.cos(elevation) * flat + np.array([0.0, 0.0, np.sin(elevation)])
        right = np.array([flat[1], -flat[0], 0.0])
        return np.stack([right, np.cross(forward, right), forward])

    @property
    def position(self) -> np.ndarray:
        """float [3], metres."""
        return np.array(self.lookat) - self.distance * self.axes[2]

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points float [N, 3] (x, y, z) in metres -> float [N, 3]: u, v, 0..1 from the image's left and top where they
        are in view, and the depth in metres."""
        across, down, depth = self.axes @ (points - self.position).T
        width = self.view_width * depth
        return np.stack([0.5 + across / width, 0.5 + down / width, depth], axis=1)

    def image_position(self, point: np.ndarray) -> tuple[float, float]:
        """Where a point (x, y, z) is in the picture: `project`'s (u, v)."""
        u, v, _ = self.project(np.asarray(point)[None])[0].tolist()
        return u, v

    def on_plane(self, place: np.ndarray, height: float) -> np.ndarray:
        """What is at (u, v) of the picture on the plane of this height in metres: float [2] (x, y)."""
        right, down, forward = self.axes
        ray = forward + self.view_width * ((place[0] - 0.5) * right + (place[1] - 0.5) * down)
        return (self.position + (height - self.position[2]) / ray[2] * ray)[:2]


@dataclass(frozen=True)
class Ornament:
    """A shape that is drawn but not simulated; `kind` is MuJoCo's name (`"box"`), sizes and position in metres."""

    kind: str
    size: tuple[float, float, float]
    position: tuple[float, float, float]
    rgba: tuple[float, float, float, float]
    rotation: tuple[float, ...] = UPRIGHT  # rows of a 3 x 3 matrix


class OffscreenCamera:
    """One OpenGL context. It draws every simulation whose model has the same meshes and textures as the first."""

    def __init__(self, model: Any):
        # Multisampling and shadows cost nine tenths of the time on a CPU and tell a small image nothing.
        model.vis.quality.offsamples, model.vis.quality.shadowsize = 0, 0
        model.vis.global_.offwidth = model.vis.global_.offheight = FRAMEBUFFER
        self._gl = mujoco.GLContext(FRAMEBUFFER, FRAMEBUFFER)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = 0
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0  # the goal marker is a site, and it shows the answer
        self._textures: dict[str, str] = {}
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FREE

    def show_texture(
        self, model: Any, slot: str, name: str, repeats: float, pixels: Callable[[str], np.ndarray]
    ) -> None:
        """Fills the texture `slot` with `pixels(name)`, uint8 of its size, unless it shows that already; it repeats so
        often per metre in the material of the same name: the context has numbers of its own for that."""
        material = model.material(slot).id
        self._context.mat_texrepeat[2 * material : 2 * material + 2] = repeats
        if self._textures.get(slot) == name:
            return
        texture = model.texture(slot).id
        start, values = model.tex_adr[texture], pixels(name).ravel()
        model.tex_data[start : start + len(values)] = values
        self._gl.make_current()
        mujoco.mjr_uploadTexture(model, self._context, texture)
        self._textures[slot] = name

    def picture(
        self, model: Any, data: Any, pose: CameraPose, size: int, ornaments: Sequence[Ornament] = ()
    ) -> np.ndarray:
        """uint8 [size, size, 3]"""
        self._compose(model, data, pose, ornaments)
        return self._draw(size)

    def segments(
        self, model: Any, data: Any, pose: CameraPose, size: int, ornaments: Sequence[Ornament] = ()
    ) -> np.ndarray:
        """int [size, size]: the model's geom id, `FIRST_ORNAMENT + i` for the i-th ornament, -1 for the sky."""
        self._compose(model, data, pose, ornaments)
        before = self._scene.flags.copy()
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = 1
        self._scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        pixels = self._draw(size).astype(np.int64)
        self._scene.flags[:] = before
        drawn = [g for g in self._scene.geoms[: self._scene.ngeom] if g.segid >= 0]
        names = np.full(self._scene.ngeom + 1, -1)
        names[[g.segid + 1 for g in drawn]] = [g.objid for g in drawn]
        return names[pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]]

    def _compose(self, model: Any, data: Any, pose: CameraPose, ornaments: Sequence[Ornament]) -> None:
        self._camera.lookat[:], self._camera.distance = pose.lookat, pose.distance
        self._camera.azimuth, self._camera.elevation = pose.azimuth, pose.elevation
        model.vis.global_.fovy = pose.fovy
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._options, None, self._camera, everything, self._scene)
        for index, ornament in enumerate(ornaments):
            geom = self._scene.geoms[self._scene.ngeom]
            kind = getattr(mujoco.mjtGeom, f"mjGEOM_{ornament.kind.upper()}")
            size, position = np.array(ornament.size, dtype=float), np.array(ornament.position, dtype=float)
            colour = np.array(ornament.rgba, dtype=np.float32)
            mujoco.mjv_initGeom(geom, kind, size, position, np.array(ornament.rotation, dtype=float), colour)
            geom.segid, geom.objid = self._scene.ngeom, FIRST_ORNAMENT + index
            self._scene.ngeom += 1

    def _draw(self, size: int) -> np.ndarray:
        self._gl.make_current()
        view, pixels = mujoco.MjrRect(0, 0, size, size), np.empty((size, size, 3), dtype=np.uint8)
        mujoco.mjr_render(view, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, view, self._context)
        return np.ascontiguousarray(pixels[::-1])


_cameras = threading.local()  # an OpenGL context belongs to the thread that made it


def thread_camera(scene: str, make_model: Callable[[], Any]) -> OffscreenCamera:
    """This thread's camera for all simulations of one scene, made on first use from any model of that scene."""
    if not hasattr(_cameras, "of_scene"):
        _cameras.of_scene = {}
    if scene not in _cameras.of_scene:
        _cameras.of_scene[scene] = OffscreenCamera(make_model())
        atexit.register(_close_cameras)  # after MuJoCo has registered the end of EGL, hence called before that
    return _cameras.of_scene[scene]


def _close_cameras() -> None:
    """Before EGL goes: a context freed after it complains on the screen."""
    for camera in getattr(_cameras, "of_scene", {}).values():
        camera._gl.free()
        camera._context.free()
    _cameras.of_scene = {}
