"""Errors that a caller receives."""

from __future__ import annotations

from maml_ray.common.errors import escape_unprintable


class ApiError(Exception):
    """An error that the caller receives as ``{"error": message}``.

    Attributes:
        status: HTTP status, 400 or above.
        message: one sentence.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)  # both, so that the exception can be pickled
        self.status = status
        self.message = escape_unprintable(message)
