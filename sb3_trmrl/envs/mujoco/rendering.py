"""Images of a MuJoCo simulation, with or without a display."""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

# libgl1-mesa-dri draws in software where there is no graphics card.
INSTALL_HINT = "On Debian or Ubuntu: apt-get install libegl1 libgl1-mesa-dri (for EGL) or libosmesa6 (for OSMesa)"


def _has_egl_device() -> bool:
    """:return: Whether EGL is installed and has a device (graphics card or Mesa's software) to draw on."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return False
    query_devices = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32))(address)
    n_devices = ctypes.c_int32()
    return bool(query_devices(0, None, ctypes.byref(n_devices))) and n_devices.value > 0


@contextmanager
def _opengl_backend() -> Iterator[None]:
    """
    Choose the OpenGL backend while a renderer is made: Gymnasium tries GLFW first, which needs a display.

    So without a display, and if ``MUJOCO_GL`` does not say what to take, it is EGL where that has a device, else OSMesa.
    The choice has to be made beforehand: PyOpenGL sticks to the first one that a process tries.
    """
    has_display = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if os.environ.get("MUJOCO_GL") or has_display or sys.platform != "linux":
        yield
        return
    os.environ["MUJOCO_GL"] = "egl" if _has_egl_device() else "osmesa"
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]


class Renderer:
    """
    Renders a simulation to arrays of 480 x 480 pixels through Gymnasium's renderer, with or without a display.

    :param model: Model.
    :param data: Simulation.
    :param camera: Settings of the viewer's camera by name.
    :raises RuntimeError: If the backend does not work; the message names the packages to install.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, camera: dict[str, Any]):
        # torch's CUDA build brings triton and loads it with the first optimizer. Mesa's software driver and triton each
        # hold an LLVM, and the process crashes if triton comes second.
        if importlib.util.find_spec("triton") is not None:
            importlib.import_module("triton")
        self._renderer = MujocoRenderer(model, data, default_cam_config=camera, width=480, height=480)
        with _opengl_backend():
            backend = os.environ.get("MUJOCO_GL", "default")
            try:
                self._renderer.render("rgb_array")
            # Whatever OpenGL, PyOpenGL or a missing library raises means the same to the user.
            except Exception as error:
                raise RuntimeError(f"The OpenGL backend {backend!r} does not work ({error}). {INSTALL_HINT}") from error

    def rgb_array(self) -> np.ndarray:
        """:return: Image ``(height, width, 3)`` uint8."""
        return np.array(self._renderer.render("rgb_array"))

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()
