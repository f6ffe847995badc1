"""What a caller is told when another process of the service is busy, slow, away or broken."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from maml_ray.distributed.serving import _answer
from maml_ray.serving.refusal import Refusal


async def failing(error: Exception) -> Any:
    raise error


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (BackPressureError(num_queued_requests=16, max_queued_requests=16), "too many"),
        (DeploymentUnavailableError(DeploymentID("Adapter", "maml-ray")), "away"),
        (ActorDiedError(), "away"),
    ],
)
def test_who_is_busy_or_away_is_named(error: Exception, word: str) -> None:
    with pytest.raises(Refusal) as caught:
        asyncio.run(_answer(failing(error), "adapter", 5.0))
    assert caught.value.status == 503
    assert word in caught.value.sentence
    assert "adapter" in caught.value.sentence


def test_who_does_not_answer_is_not_waited_for() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Refusal, match=r"within 0\.01 s"):
        asyncio.run(_answer(never(), "adapter", 0.01))


def test_a_defect_is_no_refusal() -> None:
    defect = RayTaskError("adapt", "traceback", ValueError("ours"))
    with pytest.raises(RayTaskError):
        asyncio.run(_answer(failing(defect), "adapter", 5.0))
