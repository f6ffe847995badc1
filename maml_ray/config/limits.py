"""Reject sizes that cannot be meant, before they exhaust memory.

Each limit is far above what anybody trains with, and below what takes a large machine down. The
functions return what is wrong in one sentence, or None.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

MAX_EPISODES = 10_000
"""Episodes of one task at once: each has its own simulation."""
MAX_STEPS = 10_000_000
"""Environment steps of one task, episodes times horizon: a rollout worker holds them."""
MAX_ITERATION_STEPS = 1_000_000_000
"""Environment steps of an iteration: the learner holds them."""
MAX_EVALUATION_EPISODES = 100_000
"""Episodes of an evaluation per number of inner steps: each is a line of the CSV."""
MAX_ADAPTATION_STEPS = 100
"""Inner steps after training."""
MAX_WEIGHTS = 100_000_000
"""Weights and biases between the hidden layers of a policy."""


def episodes_problem(episodes: int, horizon: int, name: str) -> str | None:
    """Return what is wrong with the number of ``episodes`` of one task; ``name`` is its key."""
    if episodes > MAX_EPISODES:
        return f"{name} = {_short(episodes)} is not allowed: at most {MAX_EPISODES:,}"
    if episodes * horizon > MAX_STEPS:
        return (
            f"{name} = {episodes} with task.horizon = {_short(horizon)} is not allowed: at most "
            f"{MAX_STEPS:,} environment steps per task"
        )
    return None


def evaluation_problem(
    tasks: int, episodes: int, steps: int, horizon: int, prefix: str
) -> str | None:
    """Return what is wrong with the size of an evaluation.

    Args:
        tasks: number of tasks, each adapted to on its own.
        episodes: per task.
        steps: inner steps.
        horizon: steps of an episode.
        prefix: of the keys: ``"evaluation."`` in settings, ``"--"`` on a command line.
    """
    if steps > MAX_ADAPTATION_STEPS:
        return f"{prefix}steps = {_short(steps)} is not allowed: at most {MAX_ADAPTATION_STEPS}"
    if tasks * episodes > MAX_EVALUATION_EPISODES:
        return (
            f"{prefix}tasks = {_short(tasks)} with {prefix}episodes = {_short(episodes)} is not "
            f"allowed: at most {MAX_EVALUATION_EPISODES:,} episodes in total"
        )
    return episodes_problem(episodes, horizon, f"{prefix}episodes")


def iteration_problem(tasks: int, episodes: int, horizon: int, phases: int) -> str | None:
    """Return what is wrong with the size of a meta-batch of ``phases`` rollouts per task."""
    steps = tasks * episodes * horizon * phases
    if steps > MAX_ITERATION_STEPS:
        return (
            f"meta_batch.tasks = {_short(tasks)} is not allowed: an iteration would have "
            f"{_short(steps)} environment steps, more than {MAX_ITERATION_STEPS:,}"
        )
    return episodes_problem(episodes, horizon, "meta_batch.episodes")


def network_problem(hidden_sizes: Sequence[int]) -> str | None:
    """Return what is wrong with the size of a policy network."""
    if sum(a * b for a, b in pairwise(hidden_sizes)) + sum(hidden_sizes) > MAX_WEIGHTS:
        return (
            f"policy.hidden_sizes = {list(hidden_sizes)!r:.80} is not allowed: more than "
            f"{MAX_WEIGHTS:,} weights"
        )
    return None


def _short(number: int) -> str:
    return f"{number}" if number < 10**20 else f"about 1e{int(number.bit_length() * 0.30103)}"
