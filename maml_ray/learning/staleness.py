"""Decide which parameter version collects which meta-batch: the current or the previous one.

With ``meta_batch.async_collection`` the actors collect the next meta-batch during the update, so
its data are one version behind the parameters that they update:

    learner   |          update 0          |          update 1          |          update 2
    actors    batch 0 | batch 1, version 0 | batch 2, version 1 | batch 3, version 2

The version is a function of the iteration's number, not of timing, so that the run's bits depend
on its settings and seed only.
"""

from __future__ import annotations

from maml_ray.config.sections import MetaBatchSettings
from maml_ray.config.settings import Settings


def collection_version(settings: MetaBatchSettings, iteration: int) -> int:
    """Return the parameter version that collects the meta-batch of ``iteration``.

    With ``async_collection`` version 0 collects the first two meta-batches.
    """
    return max(0, iteration - 1) if settings.async_collection else iteration


def checkpoints_to_keep(settings: Settings) -> int:
    """Return ``run.keep_checkpoints``, raised to the minimum that finding the best one needs.

    A version is scored when its meta-batch is learned from, which with ``async_collection`` is one
    iteration after its checkpoint.
    """
    return max(settings.run.keep_checkpoints, 2 if settings.meta_batch.async_collection else 1)
