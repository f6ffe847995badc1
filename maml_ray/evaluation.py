"""Evaluation: the return before and after adaptation, and a video of it. No Ray."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from maml_ray.agent import Agent
from maml_ray.collection import reset_seeds
from maml_ray.seeding import Purpose, seed_sequence
from maml_ray.tasks.distribution import Task, resolve_tasks
from maml_ray.trajectories import Trajectories

Actions = Literal["stochastic", "mean"]
_RESAMPLES = 10_000
_SUPPORT, _STOCHASTIC, _MEAN = range(3)


@dataclass(frozen=True)
class EvaluationRow:
    """Returns after some number of adaptation steps, for one way to act.

    Attributes:
        steps: adaptation steps taken; 0 is before adaptation.
        actions: sampled from the policy, or its mean.
        mean: mean undiscounted return over tasks and episodes.
        low, high: 95% interval of the mean, by bootstrap over episodes.
        episodes: how many returns there are.
        returns: all of them, task after task.
    """

    steps: int
    actions: Actions
    mean: float
    low: float
    high: float
    episodes: int
    returns: tuple[float, ...]


@dataclass(frozen=True)
class Episode:
    """One evaluated episode, enough to see it again: its task, its reset seed, its actions."""

    task: Task
    reset_seed: int
    actions: NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        tasks: number of tasks, each adapted to anew.
        episodes: episodes per task and row.
        rows: by number of steps, stochastic before mean actions.
        first_episode: the first mean-action episode after the last adaptation step.
    """

    tasks: int
    episodes: int
    rows: tuple[EvaluationRow, ...]
    first_episode: Episode

    def row(self, steps: int, actions: Actions) -> EvaluationRow:
        """The row for a number of steps and a way to act."""
        return next(row for row in self.rows if (row.steps, row.actions) == (steps, actions))

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain data: the content of ``evaluation.json``."""
        rows = [{**asdict(row), "returns": list(row.returns)} for row in self.rows]
        return {"tasks": self.tasks, "episodes": self.episodes, "rows": rows}


def evaluate(
    agent: Agent,
    *,
    tasks: int | None = None,
    episodes: int | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """Judge an agent on tasks and random numbers that training has not seen.

    For each task the agent collects a support set (of the size that it was trained with), takes
    an inner step, and so on; before the first and after every step its return is measured on
    episodes of their own.

    Args:
        agent: what :func:`maml_ray.load` gives.
        tasks: number of tasks; ``evaluation.tasks`` of its settings by default.
        episodes: per task, number of steps and way to act; ``evaluation.episodes`` by default.
        steps: adaptation steps; ``inner.steps`` by default.
        seed: of all the randomness in it.
    """
    tasks = tasks or agent.settings.evaluation.tasks
    episodes = episodes or agent.settings.evaluation.episodes
    steps = agent.settings.inner.steps if steps is None else steps
    returns: dict[tuple[int, Actions], list[float]] = {}
    first: Episode | None = None
    for index, task in enumerate(agent.sample_tasks(tasks, seed=seed)):
        for adapted, step in _adaptations(agent, task, steps, (seed, index)):
            for actions, measured, stream in _measure(adapted, task, episodes, step, (seed, index)):
                returns.setdefault((step, actions), []).extend(measured.returns.tolist())
                if first is None and (step, actions) == (steps, "mean"):
                    taken = measured.mask[0]
                    first = Episode(
                        task, reset_seeds(stream, episodes)[0], measured.actions[0][taken]
                    )
    assert first is not None  # there is at least one task
    rows = tuple(_row(step, actions, values) for (step, actions), values in returns.items())
    return Evaluation(tasks, episodes, rows, first)


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write the figures as JSON."""
    path.write_text(json.dumps(evaluation.as_dict(), indent=2) + "\n", encoding="utf-8")


def record_video(agent: Agent, episode: Episode, path: Path) -> None:
    """Play an evaluated episode again, in front of a camera, and write an MP4.

    The simulation is deterministic: the same reset seed and actions give the same episode.

    Raises:
        VideoUnavailable: nothing can be rendered or encoded on this machine.
    """
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        import imageio.v2 as imageio  # here, since it is slow to import and rarely needed

        tasks = resolve_tasks(agent.settings.task)
        env = tasks.make_env(
            episode.task, horizon=agent.settings.task.horizon, render_mode="rgb_array"
        )
        try:
            frames_per_second = int(env.metadata.get("render_fps", 30))
            imageio.mimwrite(
                path, list(_frames(env, episode)), fps=frames_per_second, macro_block_size=1
            )
        finally:
            env.close()
    except Exception as error:  # OpenGL's failures are of many kinds, none of them ours
        path.unlink(missing_ok=True)
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise VideoUnavailable(
            f"no video: this machine cannot render ({told}); install an OpenGL library "
            "(Debian: apt-get install libegl1 libgl1) and set MUJOCO_GL=egl"
        ) from None


class VideoUnavailable(Exception):
    """This machine cannot render or encode; the sentence says what would help."""


def _adaptations(
    agent: Agent, task: Task, steps: int, key: tuple[int, int]
) -> Iterator[tuple[Agent, int]]:
    """The agent after 0, 1, ... ``steps`` inner steps on ``task``, with fresh support each time."""
    for step in range(steps + 1):
        yield agent, step
        if step < steps:
            agent = agent.adapt(agent.collect(task, seed=_stream(key, step, _SUPPORT)))


def _measure(
    agent: Agent, task: Task, episodes: int, step: int, key: tuple[int, int]
) -> Iterator[tuple[Actions, Trajectories, np.random.SeedSequence]]:
    kinds: tuple[tuple[Actions, int], ...] = (("stochastic", _STOCHASTIC), ("mean", _MEAN))
    for actions, kind in kinds:
        stream = _stream(key, step, kind)
        explore = actions == "stochastic"
        yield actions, agent.collect(task, episodes=episodes, seed=stream, explore=explore), stream


def _stream(key: tuple[int, int], step: int, kind: int) -> np.random.SeedSequence:
    seed, index = key
    return seed_sequence(seed, Purpose.EVALUATION, index, step, kind)


def _row(steps: int, actions: Actions, values: list[float]) -> EvaluationRow:
    low, high = bootstrap_interval(np.asarray(values))
    return EvaluationRow(
        steps, actions, float(np.mean(values)), low, high, len(values), tuple(values)
    )


def bootstrap_interval(values: NDArray[np.float64], share: float = 0.95) -> tuple[float, float]:
    """Percentile-bootstrap interval of the mean of ``values`` (n,), the same at every call.

    Efron 1979; percentile method, 10,000 resamples.
    """
    rng = np.random.default_rng(0)
    picks = rng.integers(len(values), size=(_RESAMPLES, len(values)))
    tail = 50.0 * (1.0 - share)
    low, high = np.percentile(values[picks].mean(axis=1), [tail, 100.0 - tail])
    return float(low), float(high)


def _frames(env: gym.Env[Any, Any], episode: Episode) -> Iterator[NDArray[np.uint8]]:
    env.reset(seed=episode.reset_seed)
    yield _rendered(env)
    for action in episode.actions:
        env.step(action)
        yield _rendered(env)


def _rendered(env: gym.Env[Any, Any]) -> NDArray[np.uint8]:
    return np.asarray(env.render(), dtype=np.uint8)
