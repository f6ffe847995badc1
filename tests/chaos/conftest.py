"""Provide a cluster of a head and one node, with this process as its driver."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.chaos.machine import Machine, machine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder: they start Ray, most of them in other processes."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("ray")


@pytest.fixture
def cluster() -> Iterator[Machine]:
    with machine(nodes=1) as made:
        ray.init(address=made.address, logging_level=logging.ERROR, log_to_driver=False)
        try:
            yield made
        finally:
            ray.shutdown()
