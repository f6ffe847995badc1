"""What ``evaluation.json`` must hold for a table, a plot and a report to be made of it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

_MOST = 1e30


def _drawable(value: float) -> float:
    if abs(value) > _MOST and not math.isnan(value):
        raise ValueError(f"should be less than {_MOST:g}")
    return value


Figure = Annotated[float, AfterValidator(_drawable)]
"""A number that can be drawn; of a policy that broke its simulation, not a number."""
Count = Annotated[int, Field(ge=0, le=10**15)]


class _Plain(BaseModel):
    """More may be there than is asked for: a later version's figures."""

    model_config = ConfigDict(strict=True, extra="allow")


class _Row(_Plain):
    task: str | None
    steps: Count
    actions: Literal["stochastic", "mean"]
    mean: Figure
    low: Figure
    high: Figure
    speed: Figure | None
    episodes: Count


class _TaskRow(_Row):
    task: str


class _Figures(_Plain):
    tasks: Count
    episodes: Count
    rows: Annotated[list[_Row], Field(min_length=1)]
    rows_by_task: list[_TaskRow]
    beside: dict[str, list[_Row]]


def figures_of(text: str) -> dict[str, Any]:
    """The figures of an evaluation, checked.

    Raises:
        ValueError: they are not an evaluation's; the words say which one is wrong.
    """
    try:
        return _Figures.model_validate_json(text).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place:.80}: {first['msg']:.200}".lstrip(": ")) from None
