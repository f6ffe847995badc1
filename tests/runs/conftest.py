"""Share one local Ray cluster among this package's tests."""

from tests.small_ray import local_ray

__all__ = ["local_ray"]
