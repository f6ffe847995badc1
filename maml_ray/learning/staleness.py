"""Which version of the parameters collects which meta-batch: today's, or the one before.

With ``meta_batch.async_collection`` the actors collect the next meta-batch while the learner still works at
this one, so the parameters that it collects with are one update behind those that learn from it:

    learner   |          update 0          |          update 1          |          update 2
    actors    batch 0 | batch 1, version 0 | batch 2, version 1 | batch 3, version 2

Which version that is follows from the iteration's number alone, never from who was quick: so the
run's bits depend on its settings and seed, as without it.
"""

from __future__ import annotations

from maml_ray.config.settings import Settings


def collection_version(settings: Settings, iteration: int) -> int:
    """The version of the parameters that collects the meta-batch of ``iteration``.

    The first is there before any update: it collects the first two meta-batches, one of them fresh.
    """
    return max(0, iteration - 1) if settings.meta_batch.async_collection else iteration


def checkpoints_to_keep(settings: Settings) -> int:
    """``run.keep_checkpoints``, or as many as it takes to know the best.

    How good a version is shows when its meta-batch is learned from, which is one iteration later
    where the actors are one version behind.
    """
    return max(settings.run.keep_checkpoints, 2 if settings.meta_batch.async_collection else 1)
