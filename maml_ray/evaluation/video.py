"""Record evaluated episodes as a video, before and after adaptation, and show it in a notebook."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from maml_ray.common.errors import UserError, escape_unprintable
from maml_ray.common.locations import parse_path
from maml_ray.common.safe_files import open_regular, read_open
from maml_ray.envs.opengl import opengl_problem, select_opengl
from maml_ray.policies.action_sampler import to_env_actions
from maml_ray.tasks.task import Task, TaskDistribution

if TYPE_CHECKING:  # PyTorch takes seconds to import
    from maml_ray.evaluation.agent import Agent
    from maml_ray.evaluation.results import Episode

Frame = NDArray[np.uint8]
_WIDTH, _HEIGHT, _CAPTION = 400, 300, 44
"""Size of one image and height of the caption above it, in pixels."""
_MAX_SHOWN_BYTES = 200_000_000
_SHADOW_MAP_SIZE = 1024
"""At this image size MuJoCo's default of 4096 looks no better, and without a GPU it more than
doubles the time per frame."""
_TEXT_COLOR, _BACKGROUND = (28, 36, 48), (255, 255, 255)


class VideoUnavailable(Exception):
    """There is no video; the message says why and what to do.

    Args:
        reason: what does not work, and the remedy if one is known.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(escape_unprintable(f"no video: {reason}"))


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
        replays: :attr:`maml_ray.evaluation.results.Evaluation.replays`.
        path: file to write; its name ends in ``.mp4``.
        on_frame: called after each frame with its number and the number of frames.

    Raises:
        VideoUnavailable: the environment renders no images, or this machine cannot render or
            encode them.
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
    path = parse_path(path, "path")
    if path.suffix != ".mp4" or not path.parent.is_dir():
        raise UserError(
            f"{path} cannot be written: name a file that ends in .mp4, in an existing directory"
        )
    tasks, numbers = agent.tasks, count(1)
    frames = sum(len(episode.actions) + 1 for pair in replays for episode in pair)

    def report() -> None:
        on_frame(next(numbers), frames)

    _write_video(
        path,
        [[_record_clip(agent, tasks, episode, report) for episode in pair] for pair in replays],
    )


def check_rendering(tasks: TaskDistribution, horizon: int) -> None:
    """Render the first image of a task.

    Raises:
        VideoUnavailable: the environment renders no images, or this machine cannot render them.
    """
    (task,) = tasks.sample(np.random.default_rng(0), 1)
    with closing(_make_env(tasks, task, horizon)) as env:
        env.reset(seed=0)
        _render(env)


def show_video(path: str | Path, *, width: int = 480) -> Any:
    """Return an MP4 as an object that Jupyter displays, embedded in the notebook.

    Args:
        path: file to show.
        width: width in pixels.

    Raises:
        OSError: there is no such file, or it has more than 200 MB.
        UserError: IPython is not installed.
    """
    try:
        from IPython.display import HTML
    except ModuleNotFoundError:
        raise UserError(
            "show_video shows a video in Jupyter notebooks, and IPython is not installed: open "
            f"{path} in another program, or pip install ipykernel"
        ) from None

    with open_regular(parse_path(path, "path"), max_bytes=_MAX_SHOWN_BYTES) as file:
        data = b64encode(read_open(file, _MAX_SHOWN_BYTES)).decode()
    source = f'<source src="data:video/mp4;base64,{data}" type="video/mp4">'
    return HTML(f'<video width="{int(width)}" controls loop>{source}</video>')


def _write_video(path: Path, rows: list[list[_Clip]]) -> None:
    """Encode clips in a grid, atomically."""
    # imageio chooses the format by the suffix.
    temporary = path.with_name(f".{path.stem[:100]}.{os.getpid()}.partial.mp4")
    fps = max(clip.frames_per_second for row in rows for clip in row)
    try:
        import imageio.v2 as imageio  # slow to import and rarely needed

        writer: Any = imageio.get_writer(temporary, fps=fps, macro_block_size=2)
        with writer:
            for frame in _tile([[clip.frames for clip in row] for row in rows]):
                writer.append_data(frame)
        os.replace(temporary, path)
    except Exception as error:  # codecs raise many unrelated types
        temporary.unlink(missing_ok=True)
        raise VideoUnavailable(
            f"it cannot be written ({_reason(error)}); the encoder is ffmpeg: "
            "pip install imageio-ffmpeg"
        ) from None


@dataclass(frozen=True)
class _Clip:
    """The captioned frames of one episode."""

    frames: list[Frame]
    frames_per_second: int


def _record_clip(
    agent: Agent, tasks: TaskDistribution, episode: Episode, on_frame: Callable[[], None]
) -> _Clip:
    with closing(_make_env(tasks, episode.task, agent.settings.task.horizon)) as env:
        caption = _render_caption(episode)
        frames = []
        for frame in _replay(agent, env, episode):
            frames.append(np.concatenate((caption, frame)))
            on_frame()
        return _Clip(frames, int(env.metadata.get("render_fps", 30)))


def _make_env(tasks: TaskDistribution, task: Task, horizon: int) -> gym.Env[Any, Any]:
    """Create an environment that renders, MuJoCo's in the size of the video."""
    select_opengl()
    try:
        env = tasks.make_env(task, horizon=horizon, render_mode="rgb_array")
    except Exception as error:  # a user's class may raise anything
        raise VideoUnavailable(
            f"the environment cannot be created with render_mode='rgb_array' ({_reason(error)})"
        ) from None
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is not None:
        problem = opengl_problem()
        if problem is not None:
            env.close()
            raise VideoUnavailable(problem)
        # Without a GPU, rendering takes most of a video's time.
        renderer.width, renderer.height = _WIDTH, _HEIGHT
        quality = renderer.model.vis.quality  # read when the first frame is drawn
        quality.shadowsize = min(_SHADOW_MAP_SIZE, quality.shadowsize)
    return env


def _replay(agent: Agent, env: gym.Env[Any, Any], episode: Episode) -> Iterator[Frame]:
    try:
        env.reset(seed=episode.reset_seed)
        yield _render(env)
        for action in to_env_actions(agent.spec, episode.actions):
            env.step(action)
            yield _render(env)
    except VideoUnavailable:
        raise
    except Exception as error:  # a user's class may raise anything
        raise VideoUnavailable(f"an episode cannot be replayed ({_reason(error)})") from None


def _render(env: gym.Env[Any, Any]) -> Frame:
    """Render the environment, scaled to ``_WIDTH`` and an even height."""
    from PIL import Image

    try:
        rendered: Any = env.render()
        if rendered is None:
            raise ValueError("render() returned None")
        image = Image.fromarray(np.asarray(rendered, dtype=np.uint8))
    except gym.error.DependencyNotInstalled as error:
        raise VideoUnavailable(_reason(error)) from None
    except Exception as error:  # a user's class may raise anything
        raise VideoUnavailable(
            f"the environment renders no image for render_mode='rgb_array' ({_reason(error)})"
        ) from None
    height = 2 * round(image.height * _WIDTH / image.width / 2)
    return np.asarray(image.resize((_WIDTH, height), Image.Resampling.BILINEAR))


def _reason(error: Exception) -> str:
    """Return the type and message of an error; of one that says what to install, the message."""
    message = " ".join(str(error).split())[:300]
    if isinstance(error, gym.error.DependencyNotInstalled):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


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
