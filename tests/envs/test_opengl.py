"""Without OpenGL MuJoCo simulates, and the variable and the remedy are named."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from maml_ray.envs import opengl
from maml_ray.envs.opengl import (
    VARIABLE,
    describe_opengl_error,
    import_mujoco,
    opengl_problem,
    select_opengl,
)


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ("egl", "MUJOCO_GL=egl does not work here (libEGL is not installed): install it (Debian: "),
        ("osmesa", "(libOSMesa is not installed): install it (Debian: apt-get install libosmesa6)"),
        ("glfw", "MUJOCO_GL=glfw does not work here (it needs a display): set MUJOCO_GL=egl"),
        ("nonsense", "MUJOCO_GL=nonsense names no OpenGL library: set it to egl, osmesa or glfw"),
        ("EGL", "MUJOCO_GL=EGL names no OpenGL library: set it to egl, osmesa or glfw"),
        ("disabled", "MUJOCO_GL=disabled names no OpenGL library: set it to egl"),
        (None, "OpenGL does not work here (no driver): install it (Debian: apt-get install libegl"),
    ],
)
def test_what_does_not_work_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, chosen: str | None, sentence: str
) -> None:
    monkeypatch.setattr(opengl, "find_library", lambda name: None)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv(VARIABLE, raising=False)
    if chosen is not None:
        monkeypatch.setenv(VARIABLE, chosen)
    assert sentence in describe_opengl_error(RuntimeError("no driver"))


def test_of_a_library_that_is_there_the_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opengl, "find_library", lambda name: f"lib{name}.so.1")
    monkeypatch.setenv(VARIABLE, "egl")
    assert "does not work here (no driver): install" in describe_opengl_error(OSError("no driver"))


@pytest.mark.parametrize("chosen", ["nonsense", "disabled"])
def test_a_value_that_names_no_library_cannot_render(
    monkeypatch: pytest.MonkeyPatch, chosen: str
) -> None:
    monkeypatch.setenv(VARIABLE, chosen)
    assert opengl_problem() == (
        f"MUJOCO_GL={chosen} names no OpenGL library: set it to egl, osmesa or glfw"
    )


def test_without_a_display_egl_is_chosen_unless_the_user_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    for before, after in (("", "egl"), ("osmesa", "osmesa")):
        monkeypatch.setenv(VARIABLE, before)
        select_opengl()
        assert os.environ[VARIABLE] == after
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv(VARIABLE)
    select_opengl()
    assert VARIABLE not in os.environ


def test_a_library_that_is_there_or_none_needs_no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opengl, "find_library", lambda name: f"lib{name}.so.1")
    monkeypatch.setattr(opengl, "import_module", lambda name: pytest.fail(name))
    for chosen in ("egl", "glfw", ""):
        opengl._import_mujoco.cache_clear()
        monkeypatch.setenv(VARIABLE, chosen)
        assert import_mujoco() is None


def test_tasks_are_simulated_although_mujoco_refuses_the_variable() -> None:
    """MuJoCo raises when it is imported: in a process of its own, since it is imported once."""
    program = (
        "import os, gymnasium, maml_ray\n"
        "from maml_ray.envs.opengl import import_mujoco\n"
        "for name in ('maml_ray/HalfCheetahDirection-v0', 'HalfCheetah-v5'):\n"
        "    env = gymnasium.make(name)\n"
        "    env.reset(seed=0)\n"
        "    assert env.step(env.action_space.sample())[1] != 0.0\n"
        "print(import_mujoco(), os.environ['MUJOCO_GL'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, VARIABLE: "nonsense"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == (
        "MUJOCO_GL=nonsense names no OpenGL library: set it to egl, osmesa or glfw nonsense\n"
    ), done.stderr
