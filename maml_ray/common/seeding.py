"""Random streams: every draw of a run is named, so that nothing depends on who draws it.

A stream is ``SeedSequence(run seed, spawn_key=(purpose, iteration, task index, ...))``. Two
actors that are handed the same work draw the same numbers; a worker's own global random state
is never used, since forked workers share it (DESIGN: "global random state duplicates itself").
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for; the first word of its key. Numbers are part of the file format."""

    PARAMETERS = 0
    TASKS = 1
    ROLLOUT = 2
    MINIBATCHES = 3
    EVALUATION = 4


def seed_sequence(seed: int, purpose: Purpose, *key: int) -> np.random.SeedSequence:
    """The root of the stream named by ``purpose`` and ``key`` (non-negative integers)."""
    return np.random.SeedSequence(seed, spawn_key=(int(purpose), *key))


def generator(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """A generator for the stream named by ``purpose`` and ``key``."""
    return np.random.default_rng(seed_sequence(seed, purpose, *key))
