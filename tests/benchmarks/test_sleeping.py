"""The tasks of the scaling benchmark: a run accepts them."""

from __future__ import annotations

from maml_ray.rollouts.first_steps import try_first_steps
from maml_ray.tasks.loading import resolve_tasks
from tests.benchmarks.scaling_runs import settings_for


def test_a_run_accepts_the_sleeping_tasks() -> None:
    settings = settings_for(actors=2, iterations=1)
    try_first_steps(settings, resolve_tasks(settings.task))
