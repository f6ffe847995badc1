"""Rollout actors for many runs: several in a process, and taken on by one run after the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any
from unittest import mock

import ray

from maml_ray.config.settings import Settings
from maml_ray.learning.rollout_worker import Assignment
from maml_ray.policies.spec import PolicyParameters
from maml_ray.rollouts.trajectories import TaskRollouts
from maml_ray.runtime.actor_group import Roster
from maml_ray.runtime.actor_handle import Member, Recruiter
from maml_ray.runtime.actors import RolloutActor
from maml_ray.runtime.heartbeat import Place, Receipt


class SharedProcess:
    """Several rollout actors in one process; any of them does a piece of work, to the same bits."""

    def __init__(self, name: str, settings: Settings, actors: int) -> None:
        self._idle: SimpleQueue[RolloutActor] = SimpleQueue()
        for _ in range(actors):
            self._idle.put(RolloutActor(name, settings))

    def ready(self) -> Place:
        """As an actor says."""
        with self._one() as actor:
            return actor.ready()

    def roll_out(
        self, parameters: PolicyParameters, assignment: Assignment
    ) -> tuple[TaskRollouts, Receipt]:
        """As an actor does."""
        with self._one() as actor:
            return actor.roll_out(parameters, assignment)

    @contextmanager
    def _one(self) -> Iterator[RolloutActor]:
        actor = self._idle.get()
        try:
            yield actor
        finally:
            self._idle.put(actor)


@contextmanager
def actors_kept(share: int) -> Iterator[None]:
    """Rollout actors outlive their run and are taken on by the next: a start takes seconds.

    Args:
        share: how many there are in a process.
    """
    kept: dict[int, Any] = {}
    recruit = Recruiter.recruit
    remote: Any = ray.remote

    def take_on(recruiter: Recruiter, members: Iterable[Member]) -> Member:
        taken = {member.number for member in members}
        number = next(place for place in range(len(taken) + 1) if place not in taken)
        process, name = number // share, f"rollout-{number}"
        if process not in kept and share == 1:
            kept[process] = recruit(recruiter, members).actor
        elif process not in kept:
            made = remote(SharedProcess).options(num_cpus=share, max_concurrency=share)
            kept[process] = made.remote(name, recruiter._settings_ref, share)
        actor = kept[process]
        return Member(name, number, actor, actor.ready.remote(), time.monotonic())

    with (
        mock.patch.object(Recruiter, "recruit", take_on),
        mock.patch.object(Roster, "close"),
    ):
        yield


@contextmanager
def many_cpus(count: int) -> Iterator[None]:
    """A Ray of so many CPUs, all on this machine's cores."""
    ray.init(
        address="local",
        num_cpus=count,
        include_dashboard=False,
        object_store_memory=500_000_000,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    try:
        yield
    finally:
        ray.shutdown()
