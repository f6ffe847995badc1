"""Choose the OpenGL library that MuJoCo renders with, and say what to do where none works.

MuJoCo loads the library that the environment variable MUJOCO_GL names when it is imported. Without
one, simulation works, and so does training; only the video is missing.
"""

from __future__ import annotations

import os
import sys
import warnings
from ctypes.util import find_library
from functools import cache
from importlib import import_module

from maml_ray.common.errors import error_reason

VARIABLE = "MUJOCO_GL"
_INSTALL_EGL = "install it (Debian: apt-get install libegl1 libgl1)"
_REMEDIES = {
    "egl": _INSTALL_EGL,
    "osmesa": "install it (Debian: apt-get install libosmesa6), or set MUJOCO_GL=egl",
    "glfw": "set MUJOCO_GL=egl",
}
"""How to make each library work, by the value of the variable that Gymnasium accepts."""
_LIBRARIES = {"egl": ("EGL", "GL"), "osmesa": ("OSMesa",), "glfw": ()}
"""What importing MuJoCo loads."""


def select_opengl() -> None:
    """Render without a display on a machine that has none, unless the user has chosen."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY") and not os.environ.get(VARIABLE):
        os.environ[VARIABLE] = "egl"


def import_mujoco() -> str | None:
    """Import MuJoCo, even if it cannot load the OpenGL library that MUJOCO_GL names.

    Does nothing if the variable is not set or the library is installed: MuJoCo is then imported
    when it is needed.

    Returns:
        What does not work and how to mend it, in a sentence; None if MuJoCo can be imported as is.
    """
    return _import_mujoco(os.environ.get(VARIABLE))


@cache  # what has failed once is then imported without OpenGL
def _import_mujoco(chosen: str | None) -> str | None:
    if not chosen or (chosen in _LIBRARIES and not _missing_libraries(chosen)):
        return None
    try:
        import_module("mujoco")
        return None
    except Exception as error:  # OpenGL's loader raises AttributeError and others
        os.environ[VARIABLE] = "disabled"
        try:
            import_module("mujoco")
        finally:
            os.environ[VARIABLE] = chosen
        return describe_opengl_error(error)


def opengl_problem() -> str | None:
    """Return why MuJoCo cannot render in this process and what to do; None if it can.

    Raises:
        UserError: MuJoCo cannot be imported at all.
    """
    import_mujoco()
    import mujoco

    chosen = os.environ.get(VARIABLE)
    try:
        if chosen and chosen not in _REMEDIES:
            raise ValueError(chosen)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GLFW's, of the missing display
            module = import_module(f"mujoco.{chosen}") if chosen else mujoco
            context = module.GLContext(64, 64)
            context.make_current()
            model = mujoco.MjModel.from_xml_string("<mujoco/>")
            mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
            context.free()
    except Exception as error:  # OpenGL's libraries raise many unrelated types
        return describe_opengl_error(error)
    return None


def describe_opengl_error(error: Exception) -> str:
    """Return in a sentence what does not work, why, and how to mend it."""
    chosen = os.environ.get(VARIABLE)
    if not chosen:
        return f"OpenGL does not work here ({error_reason(error)}): {_INSTALL_EGL}"
    if chosen not in _REMEDIES:
        return f"{VARIABLE}={chosen:.40} names no OpenGL library: set it to egl, osmesa or glfw"
    if missing := _missing_libraries(chosen):
        reason = f"lib{missing[0]} is not installed"
    elif chosen == "glfw" and not os.environ.get("DISPLAY"):
        reason = "it needs a display"
    else:
        reason = error_reason(error)
    return f"{VARIABLE}={chosen} does not work here ({reason}): {_REMEDIES[chosen]}"


def _missing_libraries(chosen: str) -> list[str]:
    return [name for name in _LIBRARIES[chosen] if find_library(name) is None]
