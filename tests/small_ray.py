"""Start a small Ray cluster in this process, and record what a run on it reports."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import ray

from maml_ray.common.errors import Interrupted
from maml_ray.persistence.records import IterationRecord, Observer, StartReport


@contextmanager
def small_ray() -> Iterator[None]:
    """Start Ray with two CPUs and stop it at the end; reuse one that this process runs already."""
    if not ray.is_initialized():
        ray.init(
            address="local",  # not one left running on this machine
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=150_000_000,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    """Run one Ray cluster for all tests of the package whose conftest imports this fixture."""
    with small_ray():
        yield


class Recorder(Observer):
    """Record everything that a run reports; optionally interrupt it after some iterations."""

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
