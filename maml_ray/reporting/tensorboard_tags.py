"""Define what TensorBoard shows of a run, and in which order.

TensorBoard sorts groups of tags by name and opens the first two: hence the numbers. A tag is its
group and the key of ``metrics.jsonl``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from maml_ray.config.section import by_key
from maml_ray.config.settings import Settings

EVALUATION_FOLDER = "evaluation"
"""Subfolder of event files with the evaluation: a run of its own for TensorBoard."""
_ADAPTATION_ENDS = ("_after", "_before")
"""Ends of the keys of returns, speeds and ``task.info_metrics``."""
_BY_ITERATION, _BY_ENV_STEPS = "1 returns by iteration", "2 returns by env steps"
_EVALUATION = "3 evaluation by inner steps"
_LOSSES, _TIME, _FAULTS = "4 losses", "5 time", "6 faults"
VIDEO_TAG = f"{_EVALUATION}/video"
_GROUPS: Mapping[str, tuple[str, ...]] = {
    _LOSSES: (
        "loss",
        "gradient_norm",
        "gradient_snr",
        "order_cosine",
        "inner_kl",
        "query_kl",
        "clip_fraction",
        "collector_ratio_error",
        "entropy",
        "gradient_steps",
        "learning_rate",
        "staleness",
    ),
    _TIME: (
        "wall_s",
        "collect_s",
        "adapt_s",
        "learn_s",
        "rest_s",
        "checkpoint_age_s",
        "total_env_steps",
        "steps_per_second",
        "actors",
    ),
}
_FAULT_KEYS = (
    "skipped_in_a_row",
    "discarded_episodes",
    "retried",
    "duplicated",
    "discarded",
    "lost",
    "failures",
    "learner_restarts",
)
_NOT_HYPERPARAMETERS = {"run", "cluster", "faults", "evaluation"}

CUSTOM_CHARTS: Mapping[str, tuple[str, ...]] = {
    "return before and after adaptation": (f"^{_BY_ITERATION}/return_.*",),
    "return by environment steps": (f"^{_BY_ENV_STEPS}/return_.*",),
    "KL divergence of the update (nats)": (f"^{_LOSSES}/.*_kl",),
    "seconds of an iteration": (f"^{_TIME}/(collect|adapt|learn|rest)_s",),
}
"""Charts that show several curves in one, by title: regular expressions of tags."""


def scalars_by_iteration(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of a row by tag, to be shown at its iteration, without faults."""
    scalars = _tagged(_BY_ITERATION, _returns(row))
    for group, keys in _GROUPS.items():
        scalars |= _tagged(group, {key: row.get(key) for key in keys})
    return scalars


def scalars_by_env_steps(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of a row by tag, to be shown at its environment steps."""
    return _tagged(_BY_ENV_STEPS, _returns(row))


def _returns(row: Mapping[str, Any]) -> dict[str, float | None]:
    return {key: row[key] for key in sorted(row) if key.endswith(_ADAPTATION_ENDS)}


def fault_keys(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the counts of faults that are not zero in some row."""
    return {key for row in rows for key in _FAULT_KEYS if row.get(key)}


def fault_scalars(row: Mapping[str, Any], keys: Iterable[str]) -> dict[str, float]:
    """Return the counts of faults of a row by tag."""
    return _tagged(_FAULTS, {key: row.get(key) for key in keys})


def evaluation_scalars(evaluation: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Return the results in ``evaluation.json`` by number of inner steps and tag."""
    points: dict[int, dict[str, float]] = {}
    for row in evaluation["rows"]:
        values = {"return": row["mean"], "speed": row["speed"], **row.get("infos", {})}
        if row["actions"] == "stochastic":
            values |= {"return_95_low": row["low"], "return_95_high": row["high"]}
        else:
            values = {f"{name}_of_mean_actions": value for name, value in values.items()}
        points.setdefault(row["steps"], {}).update(_tagged(_EVALUATION, values))
    for policy, rows in evaluation["beside"].items():
        for row in rows:
            if row["actions"] == "stochastic":
                values = {f"return_of_{policy}": row["mean"]}
                points.setdefault(row["steps"], {}).update(_tagged(_EVALUATION, values))
    return points


def final_scalars(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Return the evaluated returns by the tags of training's, to be shown beside them."""
    rows = [row for row in evaluation["rows"] if row["actions"] == "stochastic"]
    if not rows:
        return {}
    before, after = min(rows, key=_steps_of), max(rows, key=_steps_of)
    return _tagged(
        _BY_ITERATION,
        {
            "return_before": before["mean"],
            "return_after": after["mean"],
            "speed_before": before["speed"],
            "speed_after": after["speed"],
            **{f"{name}_before": value for name, value in before.get("infos", {}).items()},
            **{f"{name}_after": value for name, value in after.get("infos", {}).items()},
        },
    )


def hyperparameters(settings: Settings) -> dict[str, bool | float | str]:
    """Return the settings that affect learning by key, without those that are None."""
    flat: dict[str, Any] = {
        "run.seed": settings.run.seed,
        "run.iterations": settings.run.iterations,
    }
    flat |= by_key(Settings, settings.model_dump(mode="json", exclude=_NOT_HYPERPARAMETERS))
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in flat.items()
        if value is not None
    }


def _steps_of(row: Mapping[str, Any]) -> int:
    return int(row["steps"])


def _tagged(group: str, values: Mapping[str, float | None]) -> dict[str, float]:
    return {f"{group}/{name}": value for name, value in values.items() if value is not None}
