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
from maml_ray.runtime.actor_group import ActorGroup
from maml_ray.runtime.actor_handle import ActorFactory, ActorHandle
from maml_ray.runtime.actors import ActorLocation, RolloutActor, RolloutInfo


class SharedProcess:
    """Several rollout actors in one process; any of them does a piece of work, to the same bits."""

    def __init__(self, name: str, settings: Settings, actors: int) -> None:
        self._idle: SimpleQueue[RolloutActor] = SimpleQueue()
        for _ in range(actors):
            self._idle.put(RolloutActor(name, settings))

    def ready(self) -> ActorLocation:
        """As an actor says."""
        with self._one() as actor:
            return actor.ready()

    def roll_out(
        self, parameters: PolicyParameters, assignment: Assignment
    ) -> tuple[TaskRollouts, RolloutInfo]:
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
    start = ActorFactory.start
    remote: Any = ray.remote

    def take_on(factory: ActorFactory, existing: Iterable[ActorHandle]) -> ActorHandle:
        occupied = {handle.slot for handle in existing}
        slot = next(index for index in range(len(occupied) + 1) if index not in occupied)
        process, name = slot // share, f"rollout-{slot}"
        if process not in kept and share == 1:
            kept[process] = start(factory, existing).actor
        elif process not in kept:
            made = remote(SharedProcess).options(num_cpus=share, max_concurrency=share)
            kept[process] = made.remote(name, factory._settings_ref, share)
        actor = kept[process]
        return ActorHandle(name, slot, actor, actor.ready.remote(), time.monotonic())

    with (
        mock.patch.object(ActorFactory, "start", take_on),
        mock.patch.object(ActorGroup, "close"),
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
