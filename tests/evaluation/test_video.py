"""The note on a missing video names the cause and, where there is one, the remedy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import maml_ray
from maml_ray.config.sections import TaskSettings
from maml_ray.evaluation.video import VideoUnavailable, check_rendering, record_video
from maml_ray.tasks.loading import resolve_tasks
from tests.small_runs import agent_of, settings


class Plain(gym.Env[Any, Any]):
    """Has no render method, and takes no render mode."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 0.0, False, False, {}


class Blind(Plain):
    """Takes a render mode and draws nothing."""

    def __init__(self, picture: Any = None, render_mode: str | None = None) -> None:
        self.picture = picture

    def render(self) -> Any:
        if isinstance(self.picture, Exception):
            raise self.picture
        return self.picture


class Drawn(maml_ray.TaskDistribution):
    """Makes an environment that ignores the render mode, with or without a picture."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self.env = env

    def sample(self, rng: np.random.Generator, count: int) -> tuple[maml_ray.Task, ...]:
        return (self.task({"g": 1.0}),) * count

    def make_env(
        self, task: maml_ray.Task, *, horizon: int, render_mode: str | None = None
    ) -> gym.Env[Any, Any]:
        return self.env


def note(tasks: maml_ray.TaskDistribution) -> str:
    with pytest.raises(VideoUnavailable) as raised:
        check_rendering(tasks, 5)
    return str(raised.value)


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        (Plain(), "='rgb_array' (NotImplementedError)"),
        (Blind(), "='rgb_array' (ValueError: render() returned None)"),
        (Blind("text"), "='rgb_array' (ValueError: "),
        (Blind(KeyError("lamp")), "='rgb_array' (KeyError: 'lamp')"),
    ],
    ids=["no render", "nothing", "no image", "raises"],
)
def test_an_environment_that_renders_nothing(env: gym.Env[Any, Any], reason: str) -> None:
    assert note(Drawn(env)).startswith("no video: the environment renders no image for render_mode")
    assert reason in note(Drawn(env))


def test_an_environment_that_takes_no_render_mode() -> None:
    gym.register("tests/Plain-v0", f"{__name__}:Plain")
    try:
        tasks = resolve_tasks(TaskSettings(env="tests/Plain-v0"))
        assert "cannot be created with render_mode='rgb_array' (" in note(tasks)
    finally:
        del gym.registry["tests/Plain-v0"]


def test_pygame_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    assert note(resolve_tasks(TaskSettings(env="CartPole-v1"))) == (
        'no video: pygame is not installed, run `pip install "gymnasium[classic-control]"`'
    )


@pytest.mark.parametrize("name", ["half-cheetah-direction", "ant-velocity"])
def test_opengl_is_missing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    tasks = resolve_tasks(TaskSettings(name=name))
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    assert note(tasks) == (
        "no video: MUJOCO_GL=nonsense names no OpenGL library: set it to egl, osmesa or glfw"
    )


def test_other_tasks_need_no_opengl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    check_rendering(resolve_tasks(TaskSettings(name="point-navigation")), 5)


def test_ffmpeg_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_writer(*arguments: Any, **keywords: Any) -> Any:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr("imageio.v2.get_writer", no_writer)
    agent = agent_of(settings())
    evaluation = maml_ray.evaluate(agent, tasks=1, episodes=1, steps=0)
    with pytest.raises(VideoUnavailable, match=r"No ffmpeg exe .*; the encoder is ffmpeg: pip ins"):
        record_video(agent, evaluation.replays, tmp_path / "video.mp4")
    assert not list(tmp_path.iterdir())
