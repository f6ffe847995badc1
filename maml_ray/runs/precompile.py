"""Compile ahead what runs need: once for a machine, or for an image.

    python -m maml_ray.runs.precompile

Without it the first run does so, and begins half a minute later.
"""

from __future__ import annotations

from maml_ray.backends.compiled import warm_up
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
from maml_ray.policies.numpy_policy import NumpyPolicy


def precompile() -> None:
    """Go through an iteration that is as small as can be, of what is compiled for any run."""
    settings = _small()
    worker = RolloutWorker(settings)
    learner = MetaLearner(settings, worker.spec)
    try:
        (task,) = sample_tasks(settings, worker.tasks, 0)
        published = learner.publish()
        rollouts, _ = worker.roll_out(published, Assignment(0, 0, task, 0))
        learner.update([rollouts])
        policy = NumpyPolicy(worker.spec, published.values, published.normalizer)
        policy.forward(rollouts.query.observations)  # as where episodes are stepped, not played
        by_trust_region = {**settings.model_dump(), "outer": {"objective": "trpo"}}
        warm_up(validate_settings(by_trust_region), worker.spec)
    finally:
        worker.close()


def _small() -> Settings:
    return validate_settings(
        {
            "task": {"name": "half-cheetah-backward", "horizon": 2},
            "meta_batch": {"tasks": 1, "episodes": 2},
        }
    )


if __name__ == "__main__":
    precompile()
