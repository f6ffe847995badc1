"""Watch a run in this process, and act on it after its iterations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings
from maml_ray.persistence.checkpoint_store import load_newest_checkpoint
from maml_ray.persistence.records import IterationRecord, Observer
from maml_ray.persistence.run_dir import RunDir
from maml_ray.persistence.storage import LocalStorage
from maml_ray.runtime.fault_policy import Failure
from tests.chaos.undisturbed import fingerprint, undisturbed


class Watcher(Observer):
    """Observer that calls a function after every iteration."""

    def __init__(self, then: Callable[[IterationRecord], None] = lambda record: None) -> None:
        self.records: list[IterationRecord] = []
        self.events: list[str] = []
        self._then = then

    def on_iteration(self, record: IterationRecord) -> None:
        self.records.append(record)
        self._then(record)

    def on_event(self, message: str) -> None:
        self.events.append(message)

    @property
    def preempted(self) -> list[str]:
        """Events about preemptions."""
        return [event for event in self.events if Failure.PREEMPTED.value in event]


def settings(iterations: int, **sections: Any) -> Settings:
    """Return settings of a small run, updated by ``sections``."""
    cluster = sections.pop("cluster", {})
    return validate_settings(
        {
            "run": {"seed": 11, "iterations": iterations},
            # Beyond 100 KB, where Ray keeps an answer on its node and not with the driver.
            "task": {"horizon": 100},
            "policy": {"hidden_sizes": [16]},
            "meta_batch": {"tasks": 4, "episodes": 10},
            "outer": {"epochs": 2},
            "cluster": {"learner_threads": 1, **cluster},
            **sections,
        }
    )


def assert_undisturbed(chosen: Settings, folder: RunDir) -> None:
    found = load_newest_checkpoint(LocalStorage(folder.path))[0].learner
    assert fingerprint(found.parameters) == fingerprint(undisturbed(chosen).parameters)
