"""What a caller is told instead of an answer: one sentence and a status of HTTP."""

from __future__ import annotations

from maml_ray.common.errors import one_line


class Refusal(Exception):
    """A request cannot be served; whose fault it is says the status.

    Attributes:
        status: of HTTP: 400 and up.
        sentence: for the caller.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(status, sentence)  # both: an exception that crosses processes needs them
        self.status = status
        self.sentence = one_line(sentence)
