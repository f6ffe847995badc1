"""A video of evaluated episodes: the same policy before and after adaptation, side by side."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.evaluate import Episode
from maml_ray.policies.action_sampler import for_environment
from maml_ray.tasks.registry import resolve_tasks
from maml_ray.tasks.task import TaskDistribution

Frame = NDArray[np.uint8]
_WIDTH, _HEIGHT, _CAPTION = 400, 300, 44
"""Size of one picture, and height of the lines above it, in pixels."""
_SHADOW = 1024
"""Side of the shadow map: at this size of picture 4096, MuJoCo's own, looks no better, and without
a GPU it more than doubles the time of a frame."""
_INK, _PAPER = (28, 36, 48), (255, 255, 255)


class VideoUnavailable(Exception):
    """This machine cannot render or encode; the sentence says what would help."""


def record_video(agent: Agent, replays: Sequence[tuple[Episode, Episode]], path: Path) -> None:
    """Play evaluated episodes again, in front of a camera, and write an MP4.

    One row a task: before adaptation on the left, after it on the right, from the same initial
    state, each with its return above it. The simulation is deterministic: the same reset seed and
    actions give the same episode. The one that ends first stands still at its end.

    Args:
        agent: whose settings the episodes were played with.
        replays: of :attr:`maml_ray.evaluation.evaluate.Evaluation.replays`.
        path: of the file to write.

    Raises:
        VideoUnavailable: nothing can be rendered or encoded on this machine.
    """
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    # Aside, and by this suffix, which tells the format; what is at ``path`` stays until then.
    aside = path.with_name(f".{path.stem[:100]}.{os.getpid()}.partial.mp4")
    try:
        import imageio.v2 as imageio  # here, since it is slow to import and rarely needed

        tasks = resolve_tasks(agent.settings.task)
        rows = [[_filmed(agent, tasks, episode) for episode in pair] for pair in replays]
        fps = max(film.frames_per_second for row in rows for film in row)
        writer: Any = imageio.get_writer(aside, fps=fps, macro_block_size=2)
        with writer:
            for frame in _composed([[film.frames for film in row] for row in rows]):
                writer.append_data(frame)
        os.replace(aside, path)
    except Exception as error:  # OpenGL's failures are of many kinds, none of them ours
        aside.unlink(missing_ok=True)
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise VideoUnavailable(
            f"no video: this machine cannot render ({told}); install an OpenGL library "
            "(Debian: apt-get install libegl1 libgl1) and set MUJOCO_GL=egl"
        ) from None


class _Film:
    """The captioned frames of one episode."""

    def __init__(self, frames: list[Frame], frames_per_second: int) -> None:
        self.frames = frames
        self.frames_per_second = frames_per_second


def _filmed(agent: Agent, tasks: TaskDistribution, episode: Episode) -> _Film:
    env = tasks.make_env(episode.task, horizon=agent.settings.task.horizon, render_mode="rgb_array")
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is not None:  # without a GPU most of a video's time goes into its pixels
        renderer.width, renderer.height = _WIDTH, _HEIGHT
        quality = renderer.model.vis.quality  # read when the first frame is drawn
        quality.shadowsize = min(_SHADOW, quality.shadowsize)
    try:
        caption = _caption(_described(episode))
        frames = [np.concatenate((caption, frame)) for frame in _frames(agent, env, episode)]
        return _Film(frames, int(env.metadata.get("render_fps", 30)))
    finally:
        env.close()


def _frames(agent: Agent, env: gym.Env[Any, Any], episode: Episode) -> Iterator[Frame]:
    env.reset(seed=episode.reset_seed)
    yield _rendered(env)
    for action in for_environment(agent.spec, episode.actions):
        env.step(action)
        yield _rendered(env)


def _rendered(env: gym.Env[Any, Any]) -> Frame:
    """The environment's picture at our width."""
    from PIL import Image

    picture = Image.fromarray(np.asarray(env.render(), dtype=np.uint8))
    height = 2 * round(picture.height * _WIDTH / picture.width / 2)
    return np.asarray(picture.resize((_WIDTH, height), Image.Resampling.BILINEAR))


def _described(episode: Episode) -> tuple[str, str]:
    """Two lines: what is shown, and how it went."""
    steps = f"{episode.steps} step" + ("" if episode.steps == 1 else "s")
    when = "before adaptation" if episode.steps == 0 else f"after {steps}"
    # Adding zero takes the sign from what is rounded to -0.0.
    speed = "" if episode.speed is None else f", {round(episode.speed, 1) + 0.0:.1f} m/s"
    return f"{episode.task.name}, {when}", f"return {round(episode.total) + 0}{speed}"


def _caption(lines: tuple[str, str]) -> Frame:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (_WIDTH, _CAPTION), _PAPER)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=16)  # Pillow brings it along
    for number, line in enumerate(lines):
        draw.text((8, 3 + 19 * number), line, fill=_INK, font=font)
    return np.asarray(image)


def _composed(rows: list[list[list[Frame]]]) -> Iterator[Frame]:
    """All films in a grid, until the last one ends."""
    grid = [film for row in rows for film in row]
    columns = len(rows[0])
    last = [film[-1] for film in grid]
    for at_once in zip_longest(*grid):
        shown = [frame if frame is not None else last[i] for i, frame in enumerate(at_once)]
        lines = [np.hstack(shown[i : i + columns]) for i in range(0, len(shown), columns)]
        yield np.vstack(lines)
