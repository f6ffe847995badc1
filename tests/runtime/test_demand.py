from __future__ import annotations

from typing import Any

import pytest

from maml_ray.config.settings import ClusterSettings
from maml_ray.runtime.demand import demanded_actors


@pytest.mark.parametrize(
    ("settings", "demanded"),
    [
        ({}, 0),
        ({"rollout_actors": 30}, 0),
        ({"autoscaler": True}, 10),
        ({"autoscaler": True, "rollout_actors": 30}, 30),
        ({"autoscaler": True, "min_rollout_actors": 12}, 12),
    ],
)
def test_an_autoscaler_is_asked_for_the_actors_of_the_settings_or_one_a_task(
    settings: dict[str, Any], demanded: int
) -> None:
    assert demanded_actors(ClusterSettings.model_validate(settings), tasks=10) == demanded
