"""Define all settings of a run: the content of ``deploy.yaml``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any, Self

from pydantic import model_validator

from maml_ray.common.html_table import html_table
from maml_ray.config.conflicts import context_problem, reptile_problem, size_problem
from maml_ray.config.error_messages import SettingsError as SettingsError
from maml_ray.config.presets import PRESETS
from maml_ray.config.renamed_keys import rename_paths
from maml_ray.config.section import Section, by_key, changes
from maml_ray.config.sections import (
    AdvantageSettings,
    ClusterSettings,
    EvaluationSettings,
    FaultSettings,
    InnerSettings,
    MetaBatchSettings,
    OuterSettings,
    PolicySettings,
    RunSettings,
    TaskSettings,
)


class Settings(Section):
    """All settings of a run: the content of ``deploy.yaml``."""

    run: RunSettings = RunSettings()
    task: TaskSettings = TaskSettings()
    policy: PolicySettings = PolicySettings()
    meta_batch: MetaBatchSettings = MetaBatchSettings()
    advantages: AdvantageSettings = AdvantageSettings()
    inner: InnerSettings = InnerSettings()
    outer: OuterSettings = OuterSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    cluster: ClusterSettings = ClusterSettings()
    faults: FaultSettings = FaultSettings()

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        problem = (
            context_problem(self.inner, self.outer, self.policy, self.meta_batch)
            or reptile_problem(self.inner, self.outer)
            or size_problem(self.task, self.policy, self.meta_batch, self.inner, self.evaluation)
        )
        if problem:
            raise SettingsError(problem)
        return self

    @property
    def annealed_over(self) -> int:
        """Iterations over which the outer learning rate is annealed."""
        return self.outer.anneal_iterations or self.run.iterations

    def replace(self, key: str | Mapping[str, Any], value: Any = ...) -> Settings:
        """Return validated settings with one or several of them replaced.

        Args:
            key: of a setting, such as ``"outer.epochs"``; of a section, whose other settings stay
                as they are; or a mapping of keys to values, without ``value``.
            value: of the setting, or a mapping of a section's settings.

        Raises:
            SettingsError: a setting does not exist or its value is not allowed.
        """
        if isinstance(key, Mapping) is not (value is ...):
            raise TypeError('write replace("outer.epochs", 4) or replace({"outer.epochs": 4})')
        new_values = key if isinstance(key, Mapping) else {key: value}
        data = self.model_dump(mode="json")
        by_path = dict(by_key(Settings, rename_paths(new_values)))
        new_task = {key.removeprefix("task."): new for key, new in by_path.items()}
        data["task"] = without_other_tasks(data["task"], new_task)
        for path, new in by_path.items():
            *sections, name = path.split(".")
            node = data
            for part in sections:
                node = node.setdefault(part, {})
                if not isinstance(node, dict):
                    raise SettingsError(f"{path:.80} is not a setting: {part:.80} has no keys")
            node[name] = new
        replaced = Settings(**data)
        if not new_task.keys() & {"name", "env"}:
            replaced = replaced.as_recorded_in(self.task.recorded_in)
        if replaced.run.preset not in (None, self.run.preset):
            raise SettingsError(PRESET_COMES_FIRST.format(replaced.run.preset))
        return replaced

    def as_recorded_in(self, folder: str | None) -> Settings:
        """Return equal settings, marked as the record of the run in ``folder``, or as written."""
        task = self.task.model_copy()
        object.__setattr__(task, "__pydantic_private__", {"_recorded_in": folder})
        return self.model_copy(update={"task": task})

    def differences(self) -> dict[str, Any]:
        """Return the settings that differ from the defaults, by their keys."""
        return dict(changes(self))

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """Yield what ``repr`` shows: name, task, and what differs from the preset or default."""
        shown = {"run.name": self.run.name, "task.name": self.task.name, **self.differences()}
        for key, value in by_key(Settings, _preset_data(self.run.preset)):
            if key not in ("run.name", "task.name"):
                shown[key] = _value(self, key)
                if shown[key] == (tuple(value) if isinstance(value, list) else value):
                    del shown[key]
        yield from shown.items()

    def _repr_html_(self) -> str:
        """Return a table of what differs from the defaults, for notebooks."""
        rows = [
            (key, repr(value), repr(_value(Settings(), key)))
            for key, value in self.differences().items()
        ]
        title = "Settings that differ from the defaults" if rows else "Settings: the defaults"
        return html_table(title, ("setting", "value", "default") if rows else (), rows)


PRESET_COMES_FIRST = (
    "run.preset = {!r:.60} is not allowed as an override: use --preset NAME, or preset=NAME in "
    "Python"
)
"""A preset's settings are merged before a file's and before overrides."""


def _preset_data(name: str | None) -> Mapping[str, Any]:
    return PRESETS[name].settings if name is not None and name in PRESETS else {}


def without_other_tasks(task: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of tasks without what ``new`` ones replace: a name or an environment."""
    replaced: set[str] = set()
    if new.get("env") is not None:
        replaced = {"name"}
    elif new.get("name") not in (None, task.get("env")):
        replaced = {"env", "ranges"}
    return {key: value for key, value in task.items() if key not in replaced}


def _value(settings: Settings, key: str) -> Any:
    return attrgetter(key)(settings)
