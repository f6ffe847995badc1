"""One small Ray cluster for all tests of this package that run actors; stopped after them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import ray


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
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
