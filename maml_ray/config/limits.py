"""What is too large to be meant: a slip of the finger is told in a sentence, not by the memory.

Each limit is far above what anybody trains with, and below what takes a large machine down.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

MOST_EPISODES = 10_000
"""Episodes of one task at once: each is a simulation of its own."""
MOST_STEPS = 10_000_000
"""Environment steps of one task at once, episodes times horizon: they are held in memory."""
MOST_ITERATION_STEPS = 1_000_000_000
"""Environment steps of an iteration: the learner holds them."""
MOST_EVALUATED = 100_000
"""Episodes of an evaluation for each number of steps: the bootstrap resamples them."""
MAX_ADAPTATION_STEPS = 100
"""Inner steps after training."""
MOST_WEIGHTS = 100_000_000
"""Between the hidden layers of a policy."""


def episodes_problem(episodes: int, horizon: int, name: str) -> str | None:
    """What is wrong with so many ``episodes`` of one task, if anything.

    Args:
        episodes: of one task, simulated side by side.
        horizon: of each.
        name: of the number of episodes, for the sentence.
    """
    if episodes > MOST_EPISODES:
        return f"{name} = {_shown(episodes)} is not allowed: at most {MOST_EPISODES:,}"
    if episodes * horizon > MOST_STEPS:
        return (
            f"{name} = {episodes} of task.horizon = {_shown(horizon)} steps is not allowed: at "
            f"most {MOST_STEPS:,} steps of a task are held at once"
        )
    return None


def evaluation_problem(
    tasks: int, episodes: int, steps: int, horizon: int, prefix: str
) -> str | None:
    """What is wrong with the size of an evaluation, if anything.

    Args:
        tasks: adaptations.
        episodes: of each.
        steps: inner steps.
        horizon: of an episode.
        prefix: of the three names: ``"evaluation."`` in settings, ``"--"`` on a command line.
    """
    if steps > MAX_ADAPTATION_STEPS:
        return f"{prefix}steps = {_shown(steps)} is not allowed: at most {MAX_ADAPTATION_STEPS}"
    if tasks * episodes > MOST_EVALUATED:
        return (
            f"{prefix}tasks = {_shown(tasks)} with {prefix}episodes = {_shown(episodes)} is not "
            f"allowed: at most {MOST_EVALUATED:,} episodes in all"
        )
    return episodes_problem(episodes, horizon, f"{prefix}episodes")


def iteration_problem(tasks: int, episodes: int, horizon: int, phases: int) -> str | None:
    """What is wrong with the size of an iteration's data, if anything."""
    steps = tasks * episodes * horizon * phases
    if steps > MOST_ITERATION_STEPS:
        return (
            f"meta_batch.tasks = {_shown(tasks)} is not allowed: an iteration would have "
            f"{_shown(steps)} environment steps, more than {MOST_ITERATION_STEPS:,}"
        )
    return episodes_problem(episodes, horizon, "meta_batch.episodes")


def network_problem(hidden_sizes: Sequence[int]) -> str | None:
    """What is wrong with the size of a policy's network, if anything."""
    weights = sum(a * b for a, b in pairwise(hidden_sizes))
    if weights + sum(hidden_sizes) > MOST_WEIGHTS:
        return (
            f"policy.hidden_sizes = {list(hidden_sizes)!r:.80} is not allowed: a network of more "
            f"than {MOST_WEIGHTS:,} weights"
        )
    return None


def _shown(number: int) -> str:
    """A number on a line: of a very large one, how large."""
    return f"{number}" if number < 10**20 else f"about 1e{int(number.bit_length() * 0.30103)}"
