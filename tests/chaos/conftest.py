"""Provide a cluster of a head and one node, with this process as its driver."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import ray

from tests.chaos.machine import Machine, machine


@pytest.fixture
def cluster() -> Iterator[Machine]:
    with machine(nodes=1) as made:
        ray.init(address=made.address, logging_level=logging.ERROR, log_to_driver=False)
        try:
            yield made
        finally:
            ray.shutdown()
