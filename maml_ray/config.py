"""Settings: what a run is, validated and frozen.

The only reader of settings files. Every section below is one key of ``deploy.yaml``;
every field has a default, so an empty file is a valid run. Mistakes raise :class:`SettingsError`
with one sentence that names the key, the value and what is allowed.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from maml_ray.errors import UserError
from maml_ray.plain_yaml import YamlError, dump_yaml, parse_yaml

MAX_FILE_BYTES = 1_000_000
"""A settings file is a page of text; anything larger is a mistake (a video, a checkpoint)."""


class SettingsError(UserError, ValueError):
    """A mistake in the settings, told in one sentence for the person who made it."""


Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
LogStd = Annotated[float, Field(ge=-20, le=5)]

T = TypeVar("T")
Option = Annotated[T, Strict()]
"""An option of a task distribution: as strict about types as a setting."""


class _Section(BaseModel):
    """Base of all sections: frozen, strict about types, strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class RunSettings(_Section):
    """Which run this is, how long it lasts and what is kept of it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = (
        "half-cheetah-backward"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    iterations: Count = 200
    directory: Annotated[str, Field(min_length=1)] = "runs"
    checkpoint_every: Count = 10
    keep_checkpoints: Count = 3


class TaskSettings(_Section):
    """What is to be learned."""

    name: Annotated[str, Field(min_length=1)] = "half-cheetah-backward"
    horizon: Count = 200
    options: dict[str, Any] = {}
    observe_parameters: bool = False


class PolicySettings(_Section):
    """The Gaussian MLP policy."""

    hidden_sizes: Annotated[tuple[Count, ...], Field(max_length=16)] = (64, 64)
    activation: Literal["tanh", "relu"] = "tanh"
    normalise_observations: bool = True
    initial_log_std: LogStd = 0.0
    min_log_std: LogStd = -3.0

    @field_validator("min_log_std")
    @classmethod
    def _floor_below_start(cls, value: float, info: ValidationInfo) -> float:
        initial = info.data.get("initial_log_std", value)
        if value > initial:
            raise ValueError(f"must not be above policy.initial_log_std ({initial})")
        return value


class MetaBatchSettings(_Section):
    """How much is collected in one meta-iteration."""

    tasks: Count = 10
    episodes: Count = 10


class AdvantageSettings(_Section):
    """From rewards to advantages."""

    discount: Fraction = 0.99
    gae_lambda: Fraction = 0.95
    baseline: Literal["linear", "zero"] = "linear"
    normalise: bool = True


class InnerSettings(_Section):
    """The inner loop: adaptation to one task."""

    steps: Annotated[int, Field(ge=1, le=5)] = 1
    learning_rate: Positive = 0.1
    objective: Literal["ratio", "log_prob"] = "ratio"
    l2: NonNegative = 0.0


class OuterSettings(_Section):
    """The outer loop: the meta-update."""

    objective: Literal["ppo", "reinforce"] = "ppo"
    order: Literal["second", "first"] = "second"
    learning_rate: Positive = 1e-3
    final_learning_rate: NonNegative | None = 1e-4
    epochs: Count = 4
    tasks_per_minibatch: Count | None = 2
    clip: Positive = 0.3
    max_query_kl: Positive | None = 0.05
    inner_kl_coefficient: NonNegative = 5e-4
    weight_decay: NonNegative = 0.0
    max_gradient_norm: Positive | None = None


class EvaluationSettings(_Section):
    """How the trained policy is judged at the end of a run and by ``maml-ray evaluate``."""

    tasks: Count = 5
    episodes: Count = 10
    video: bool = True


class ClusterSettings(_Section):
    """What a run asks of Ray, and how long it waits for it."""

    address: Annotated[str, Field(min_length=1)] | None = None
    rollout_actors: Count | None = None
    learner_device: Literal["auto", "cpu", "cuda"] = "auto"
    learner_threads: Count | None = None
    start_timeout_s: Positive = 60.0
    task_timeout_s: Positive = 300.0
    max_task_attempts: Count = 3


class Settings(_Section):
    """Everything that describes a run; the content of ``deploy.yaml``."""

    run: RunSettings = RunSettings()
    task: TaskSettings = TaskSettings()
    policy: PolicySettings = PolicySettings()
    meta_batch: MetaBatchSettings = MetaBatchSettings()
    advantages: AdvantageSettings = AdvantageSettings()
    inner: InnerSettings = InnerSettings()
    outer: OuterSettings = OuterSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    cluster: ClusterSettings = ClusterSettings()


PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    # The hyperparameters of the source notebook: one episode a task, raw discounted returns,
    # the log-probability loss with L2, plain REINFORCE outside. Its Adam(weight_decay) is kept.
    "notebook": {
        "run": {"name": "notebook", "iterations": 500, "checkpoint_every": 100},
        "policy": {
            "hidden_sizes": [64, 64],
            "activation": "relu",
            "normalise_observations": False,
            "min_log_std": -20.0,
        },
        "meta_batch": {"tasks": 4, "episodes": 1},
        "advantages": {
            "discount": 0.99,
            "gae_lambda": 1.0,
            "baseline": "zero",
            "normalise": False,
        },
        "inner": {"steps": 1, "learning_rate": 0.01, "objective": "log_prob", "l2": 1e-4},
        "outer": {
            "objective": "reinforce",
            "learning_rate": 1e-3,
            "final_learning_rate": None,
            "epochs": 1,
            "tasks_per_minibatch": None,
            "weight_decay": 1e-4,
        },
    },
}
"""Named sets of settings, laid under the file and the command line's own."""


def load_settings(
    path: str | Path | None = None,
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
) -> Settings:
    """Read settings: defaults, then ``preset``, then the file, then ``key.path=value`` overrides.

    Raises:
        SettingsError: the file cannot be read, or anything in it or in the overrides is wrong.
    """
    data: dict[str, Any] = {}
    if preset is not None:
        if preset not in PRESETS:
            raise SettingsError(
                f"preset {preset!r} is not known{_nearest(preset, PRESETS)}; "
                f"there is: {', '.join(sorted(PRESETS))}"
            )
        data = _merged(data, PRESETS[preset])
    if path is not None:
        data = _merged(data, _read(Path(path)))
    for override in overrides:
        data = _merged(data, _parse_override(override))
    return validate_settings(data)


def validate_settings(data: Mapping[str, Any]) -> Settings:
    """Check plain data (the content of a settings file) and freeze it.

    Raises:
        SettingsError: an unknown key, a wrong type or a value out of range.
    """
    try:
        # JSON mode is the strict mode that still takes a list for a tuple and 1 for 1.0.
        return Settings.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise SettingsError(f"the settings hold a value that is not plain data: {error}") from None


def dump_settings(settings: Settings) -> str:
    """Settings as YAML that :func:`load_settings` reads back to the same settings."""
    return dump_yaml(settings.model_dump(mode="json"))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise SettingsError(
                f"{path} is larger than {MAX_FILE_BYTES:,} bytes: not a settings file"
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, SettingsError):
            raise
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"cannot read the settings file {path}: {reason}") from None
    data = _data(text, str(path))
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise SettingsError(
            f"{path} must hold sections such as 'run:' and 'outer:', not {data!r:.60}"
        )
    return data


def _data(text: str, source: str) -> Any:
    try:
        return parse_yaml(text, source)
    except YamlError as error:
        raise SettingsError(str(error)) from None


def _parse_override(override: str) -> Mapping[str, Any]:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise SettingsError(
            f"cannot read the setting {override!r}: write key.path=value, e.g. outer.epochs=4"
        )
    value = _data(text, f"the value of {key.strip()}")
    for part in reversed(parts):
        value = {part: value}
    return dict(value)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, section by section; a section without keys changes nothing."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        if isinstance(value, Mapping):
            result[key] = _merged(under if isinstance(under, Mapping) else {}, value)
        elif value is None and key in Settings.model_fields:
            continue
        else:
            result[key] = value
    return result


def _nearest(name: str, known: Any) -> str:
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def _explain(error: ValidationError) -> str:
    """The first problem of a validation error as one sentence, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    location = tuple(str(part) for part in first["loc"])
    key = ".".join(location) or "the settings"
    if first["type"] == "extra_forbidden":
        known = _fields_at(location[:-1])
        sentence = f"{key} is not a setting{_nearest(location[-1], known)}"
        if not difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5):
            sentence += f"; known here: {', '.join(known)}"
    else:
        message = first["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        sentence = f"{key} = {first['input']!r:.80} is not allowed: {message}"
    more = len({tuple(problem["loc"]) for problem in problems}) - 1
    return sentence + (f" (and {more} more)" if more else "")


def _fields_at(location: tuple[str, ...]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
