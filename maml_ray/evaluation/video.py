"""Record evaluated episodes as a video, before and after adaptation, and show it in a notebook."""

from __future__ import annotations

import os
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, zip_longest
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from maml_ray.common.errors import UserError
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.evaluate import Episode
from maml_ray.policies.action_sampler import to_env_actions
from maml_ray.tasks.task import TaskDistribution

Frame = NDArray[np.uint8]
_WIDTH, _HEIGHT, _CAPTION = 400, 300, 44
"""Size of one image and height of the caption above it, in pixels."""
_SHADOW_MAP_SIZE = 1024
"""At this image size MuJoCo's default of 4096 looks no better, and without a GPU it more than
doubles the time per frame."""
_TEXT_COLOR, _BACKGROUND = (28, 36, 48), (255, 255, 255)


class VideoUnavailable(Exception):
    """This machine cannot render or encode; the message says what to install."""


def record_video(
    agent: Agent,
    replays: Sequence[tuple[Episode, Episode]],
    path: str | Path,
    *,
    on_frame: Callable[[int, int], None] = lambda frame, frames: None,
) -> None:
    """Replay evaluated episodes with a camera and write an MP4, atomically.

    Each task is one row: before adaptation on the left, after it on the right, from the same
    initial state, with the return above. The simulation is deterministic, so the same reset seed
    and actions give the same episode. An episode that ends early stops at its last frame.

    Args:
        agent: agent whose settings the episodes were recorded with.
        replays: :attr:`maml_ray.evaluation.evaluate.Evaluation.replays`.
        path: file to write; its name ends in ``.mp4``.
        on_frame: called after each frame with its number and the number of frames.

    Raises:
        VideoUnavailable: this machine cannot render or encode.
        UserError: there are no episodes, or ``path`` cannot be written.
    """
    if not isinstance(replays, Sequence):
        raise UserError(
            f"replays = {replays!r:.80} is not allowed: give the evaluation's, evaluation.replays"
        )
    if not replays:
        raise UserError(
            "there are no episodes to record: an evaluation that was read from files has none, "
            "maml_ray.evaluate(agent) has"
        )
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    path = Path(path)
    if path.suffix != ".mp4" or not path.parent.is_dir():
        raise UserError(
            f"{path} cannot be written: name a file that ends in .mp4, in an existing directory"
        )
    # imageio chooses the format by the suffix.
    temporary = path.with_name(f".{path.stem[:100]}.{os.getpid()}.partial.mp4")
    try:
        import imageio.v2 as imageio  # slow to import and rarely needed

        tasks = agent.tasks
        numbers = count(1)
        frames = sum(len(episode.actions) + 1 for pair in replays for episode in pair)

        def report() -> None:
            on_frame(next(numbers), frames)

        rows = [
            [_record_clip(agent, tasks, episode, report) for episode in pair] for pair in replays
        ]
        fps = max(clip.frames_per_second for row in rows for clip in row)
        writer: Any = imageio.get_writer(temporary, fps=fps, macro_block_size=2)
        with writer:
            for frame in _tile([[clip.frames for clip in row] for row in rows]):
                writer.append_data(frame)
        os.replace(temporary, path)
    except Exception as error:  # OpenGL, codecs and Pillow raise many unrelated types
        temporary.unlink(missing_ok=True)
        message = " ".join(str(error).split())[:200] or type(error).__name__
        raise VideoUnavailable(
            f"no video: this machine cannot render ({message}); install an OpenGL library "
            "(Debian: apt-get install libegl1 libgl1) and set MUJOCO_GL=egl"
        ) from None


def show_video(path: str | Path, *, width: int = 480) -> Any:
    """Return an MP4 as an object that Jupyter displays, embedded in the notebook.

    Args:
        path: file to show.
        width: width in pixels.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: IPython is not installed.
    """
    try:
        from IPython.display import HTML
    except ModuleNotFoundError:
        raise UserError(
            "show_video shows a video in Jupyter notebooks, and IPython is not installed: open "
            f"{path} in another program, or pip install ipykernel"
        ) from None

    data = b64encode(Path(path).read_bytes()).decode()
    source = f'<source src="data:video/mp4;base64,{data}" type="video/mp4">'
    return HTML(f'<video width="{int(width)}" controls loop>{source}</video>')


@dataclass(frozen=True)
class _Clip:
    """The captioned frames of one episode."""

    frames: list[Frame]
    frames_per_second: int


def _record_clip(
    agent: Agent, tasks: TaskDistribution, episode: Episode, on_frame: Callable[[], None]
) -> _Clip:
    env = tasks.make_env(episode.task, horizon=agent.settings.task.horizon, render_mode="rgb_array")
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is not None:  # without a GPU, rendering takes most of a video's time
        renderer.width, renderer.height = _WIDTH, _HEIGHT
        quality = renderer.model.vis.quality  # read when the first frame is drawn
        quality.shadowsize = min(_SHADOW_MAP_SIZE, quality.shadowsize)
    try:
        caption = _render_caption(episode)
        frames = []
        for frame in _replay(agent, env, episode):
            frames.append(np.concatenate((caption, frame)))
            on_frame()
        return _Clip(frames, int(env.metadata.get("render_fps", 30)))
    finally:
        env.close()


def _replay(agent: Agent, env: gym.Env[Any, Any], episode: Episode) -> Iterator[Frame]:
    env.reset(seed=episode.reset_seed)
    yield _render(env)
    for action in to_env_actions(agent.spec, episode.actions):
        env.step(action)
        yield _render(env)


def _render(env: gym.Env[Any, Any]) -> Frame:
    """Render the environment, scaled to ``_WIDTH`` and an even height."""
    from PIL import Image

    image = Image.fromarray(np.asarray(env.render(), dtype=np.uint8))
    height = 2 * round(image.height * _WIDTH / image.width / 2)
    return np.asarray(image.resize((_WIDTH, height), Image.Resampling.BILINEAR))


def _caption_lines(episode: Episode) -> tuple[str, str]:
    steps = f"{episode.steps} step" + ("" if episode.steps == 1 else "s")
    when = "before adaptation" if episode.steps == 0 else f"after {steps}"
    # Adding zero turns a rounded -0.0 into 0.0.
    speed = "" if episode.speed is None else f", {round(episode.speed, 1) + 0.0:.1f} m/s"
    return f"{episode.task.name}, {when}", f"return {round(episode.episode_return) + 0}{speed}"


def _render_caption(episode: Episode) -> Frame:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (_WIDTH, _CAPTION), _BACKGROUND)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=16)
    for number, line in enumerate(_caption_lines(episode)):
        draw.text((8, 3 + 19 * number), line, fill=_TEXT_COLOR, font=font)
    return np.asarray(image)


def _tile(rows: list[list[list[Frame]]]) -> Iterator[Frame]:
    """Yield frames of all clips in a grid until the longest clip ends."""
    clips = [clip for row in rows for clip in row]
    columns = len(rows[0])
    last = [clip[-1] for clip in clips]
    for frames in zip_longest(*clips):
        shown = [last[i] if frame is None else frame for i, frame in enumerate(frames)]
        lines = [np.hstack(shown[i : i + columns]) for i in range(0, len(shown), columns)]
        yield np.vstack(lines)
