"""Derive independent random streams from a run's seed, so that results do not depend on workers.

A stream is ``SeedSequence(run seed, spawn_key=(purpose, iteration, task index, ...))``. Two
actors with the same work draw the same numbers. Global random state is never used, since forked
workers share it (DESIGN: "global random state duplicates itself").
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """The purpose of a stream, first in its key. The numbers are part of the file format."""

    PARAMETERS = 0
    TASKS = 1
    ROLLOUT = 2
    MINIBATCHES = 3
    EVALUATION = 4


def seed_sequence(seed: int, purpose: Purpose, *key: int) -> np.random.SeedSequence:
    """Return the root of the stream of ``purpose`` and ``key`` (non-negative integers)."""
    return np.random.SeedSequence(seed, spawn_key=(int(purpose), *key))


def generator(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """Return a generator for the stream of ``purpose`` and ``key``."""
    return np.random.default_rng(seed_sequence(seed, purpose, *key))
