"""When numbers that go wrong are too many for a run to go on."""

from __future__ import annotations

from maml_ray.config.settings import FaultSettings
from maml_ray.learning.state import UpdateMetrics


def hopeless(update: UpdateMetrics, budgets: FaultSettings) -> str | None:
    """Why a run is to end after ``update``, in a sentence; None where it may go on."""
    if update.skipped is not None and update.skipped_in_a_row > budgets.skipped_updates:
        return (
            f"{update.skipped_in_a_row} updates in a row were skipped, and faults.skipped_updates "
            f"allows {budgets.skipped_updates}; the last: {update.skipped}"
        )
    if update.discarded_episodes > budgets.discarded_episodes:
        return (
            f"{update.discarded_episodes} episodes broke and were drawn again, and "
            f"faults.discarded_episodes allows {budgets.discarded_episodes}"
        )
    return None
