"""A small Ray of this process alone, and an observer that remembers what a run on it told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from maml_ray.common.errors import Interrupted
from maml_ray.persistence.records import IterationRecord, StartReport


@contextmanager
def small_ray() -> Iterator[None]:
    """Two CPUs; stopped at the end. One that runs in this process already is taken as it is."""
    if not ray.is_initialized():
        ray.init(
            address="local",  # not one that somebody has left running here
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=150_000_000,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    yield
    ray.shutdown()


class Recorder:
    """An observer that remembers, and can ask for a stop after some iterations."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.starts: list[StartReport] = []
        self.records: list[IterationRecord] = []
        self.events: list[str] = []
        self._stop_after = stop_after

    def on_start(self, report: StartReport) -> None:
        self.starts.append(report)

    def on_iteration(self, record: IterationRecord) -> None:
        self.records.append(record)
        if len(self.records) == self._stop_after:
            raise Interrupted(15)

    def on_event(self, message: str) -> None:
        self.events.append(message)

    def close(self) -> None:
        pass
