"""One small Ray cluster for all tests of this package that run actors; stopped after them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.small_ray import small_ray


@pytest.fixture(scope="package")
def local_ray() -> Iterator[None]:
    with small_ray():
        yield
