"""Compile the kernels that runs need, once per machine or container image.

    python -m maml_ray.runs.precompile

Otherwise the first run on a machine compiles them, which delays its start by about 30 s.
"""

from __future__ import annotations

from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.learning.learner import MetaLearner
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
from maml_ray.policies.numpy_policy import NumpyPolicy


def precompile() -> None:
    """Run one minimal meta-iteration that calls every kernel with the types of any run."""
    settings = _minimal_settings()
    worker = RolloutWorker(settings)
    learner = MetaLearner(settings, worker.spec)
    try:
        (task,) = sample_tasks(settings, worker.tasks, 0)
        published = learner.publish()
        rollouts, _ = worker.roll_out(published, Assignment(0, 0, task, 0))
        learner.update([rollouts])
        policy = NumpyPolicy(worker.spec, published.values, published.normalizer)
        policy.forward(rollouts.query.observations)  # for environments stepped from Python
        trust_region = {**settings.model_dump(), "outer": {"objective": "trpo"}}
        MetaLearner(validate_settings(trust_region), worker.spec).warm_up()
    finally:
        worker.close()


def _minimal_settings() -> Settings:
    return validate_settings(
        {
            "task": {"name": "half-cheetah-backward", "horizon": 2},
            "meta_batch": {"tasks": 1, "episodes": 2},
        }
    )


if __name__ == "__main__":
    precompile()
