"""Settings: what a run is, validated and frozen.

The only reader of settings files. Every section below is one key of ``deploy.yaml``;
every field has a default, so an empty file is a valid run. Mistakes raise :class:`SettingsError`
with one sentence that names the key, the value and what is allowed.
"""

from __future__ import annotations

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

from maml_ray.common.errors import UserError
from maml_ray.common.json_data import DEEPEST, NotPlain, plain
from maml_ray.common.safe_files import Unreadable, read_text
from maml_ray.common.yaml_data import YamlError, dump_yaml, parse_yaml
from maml_ray.config import limits
from maml_ray.config.error_messages import explain, nearest
from maml_ray.config.presets import PRESETS

MAX_FILE_BYTES = 100_000
"""A settings file is a page of text; anything larger is a mistake (a video, a checkpoint)."""


class SettingsError(UserError, ValueError):
    """A mistake in the settings, told in one sentence for the person who made it."""


Count = Annotated[int, Field(ge=1)]
Budget = Annotated[int, Field(ge=0)]
Width = Annotated[int, Field(ge=1, le=100_000)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=1e7)]
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
    storage: Annotated[str, Field(min_length=1)] | None = None
    checkpoint_every: Count = 1
    keep_checkpoints: Count = 3
    preset: str | None = None

    @field_validator("preset")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in PRESETS:
            raise ValueError(f"is not known; there is: {', '.join(sorted(PRESETS))}")
        return value


class TaskSettings(_Section):
    """What is to be learned."""

    name: Annotated[str, Field(min_length=1)] = "half-cheetah-backward"
    horizon: Count = 200
    options: dict[str, Any] = {}
    observe_parameters: bool = False


class PolicySettings(_Section):
    """The policy: a Gaussian or, for discrete actions, categorical MLP."""

    hidden_sizes: Annotated[tuple[Width, ...], Field(max_length=16)] = (64, 64)
    activation: Literal["tanh", "relu"] = "tanh"
    normalize_observations: bool = True
    initial_log_std: LogStd = 0.0
    min_log_std: LogStd = -3.0
    action_scale: Positive = 1.0

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
    overlap: bool = False


class AdvantageSettings(_Section):
    """From rewards to advantages."""

    discount: Fraction = 0.99
    gae_lambda: Fraction = 0.95
    baseline: Literal["linear", "zero"] = "linear"
    bootstrap_time_limit: bool = False
    normalize: bool = True

    @field_validator("bootstrap_time_limit")
    @classmethod
    def _has_values(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("baseline") == "zero":
            raise ValueError("there is nothing to bootstrap from with advantages.baseline = zero")
        if value and info.data.get("discount") == 1.0:
            raise ValueError("what follows is worth infinitely much with advantages.discount = 1")
        return value


class InnerSettings(_Section):
    """The inner loop: adaptation to one task."""

    steps: Annotated[int, Field(ge=0, le=5)] = 1
    learning_rate: Positive = 0.1
    learn_rates: bool = False
    objective: Literal["ratio", "dice", "log_prob"] = "ratio"
    l2: NonNegative = 0.0


class TrustRegionSettings(_Section):
    """The step of ``outer.objective: trpo``, which takes no other optimizer."""

    max_kl: Positive = 0.01
    cg_iterations: Count = 10
    damping: NonNegative = 1e-5
    backtrack_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.8
    max_backtracks: Count = 15


class OuterSettings(_Section):
    """The outer loop: the meta-update."""

    objective: Literal["ppo", "trpo", "reinforce"] = "ppo"
    order: Literal["second", "first", "hybrid"] = "second"
    first_order_iterations: Annotated[int, Field(ge=0)] = 0
    learning_rate: Positive = 6e-3
    final_learning_rate: NonNegative | None = 4e-4
    epochs: Count = 1
    tasks_per_minibatch: Count | None = 2
    clip: Positive = 0.3
    max_query_kl: Positive | None = 0.05
    backtracks: Annotated[int, Field(ge=0)] = 0
    inner_kl_coefficient: NonNegative = 5e-4
    sampling_coefficient: NonNegative = 0.0
    weight_decay: NonNegative = 0.0
    max_gradient_norm: Positive | None = None
    trust_region: TrustRegionSettings = TrustRegionSettings()
    diagnose_every: Count | None = 10

    @field_validator("backtracks")
    @classmethod
    def _has_a_limit(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("max_query_kl") is None:
            raise ValueError("no step goes too far with outer.max_query_kl = null")
        return value

    @field_validator("first_order_iterations")
    @classmethod
    def _only_for_hybrid(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("order") != "hybrid":
            raise ValueError("only with outer.order = hybrid is the order changed on the way")
        return value


class EvaluationSettings(_Section):
    """How the trained policy is judged at the end of a run and by ``maml-ray evaluate``."""

    tasks: Count = 5
    episodes: Count = 10
    steps: Annotated[int, Field(ge=0)] | None = None
    video: bool = True


class ClusterSettings(_Section):
    """What a run asks of Ray, and how long it waits for it."""

    address: Annotated[str, Field(min_length=1)] | None = None
    rollout_actors: Count | None = None
    min_rollout_actors: Count = 1
    learner_device: Literal["auto", "cpu", "cuda"] = "auto"
    learner_threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    learner_memory_gib: Annotated[float, Field(gt=0.0, le=4096.0)] | None = None
    autoscaler: bool = False
    start_timeout_s: Seconds = 600.0
    task_timeout_s: Seconds = 300.0
    max_task_attempts: Count = 3
    straggler_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = 3.0
    stall_s: Seconds = 60.0
    empty_timeout_s: Seconds = 600.0

    @field_validator("min_rollout_actors")
    @classmethod
    def _least_below_most(cls, value: int, info: ValidationInfo) -> int:
        most = info.data.get("rollout_actors")
        if most is not None and value > most:
            raise ValueError(f"must not be above cluster.rollout_actors ({most})")
        return value


class FaultSettings(_Section):
    """How much may go wrong before a run ends: a budget for each kind of fault."""

    infrastructure: Budget = 100
    preemptions: Budget = 1000
    discarded_episodes: Budget = 1000
    skipped_updates: Budget = 10
    missed_checkpoints: Budget = 300
    fallback_directory: Annotated[str, Field(min_length=1)] | None = None


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
    faults: FaultSettings = FaultSettings()


def load_settings(
    path: str | Path | None = None,
    *,
    preset: str | None = None,
    overrides: Sequence[str] = (),
) -> Settings:
    """Read settings: defaults, then the preset, then the file, then ``key.path=value`` overrides.

    The preset is ``preset``, or what the file names as ``run.preset``.

    Raises:
        SettingsError: the file cannot be read, or anything in it or in the overrides is wrong.
    """
    own = _read(Path(path)) if path is not None else {}
    base = _merged(_base(own, preset, path), own)
    data = base
    for override in overrides:
        data = _merged(data, _parse_override(override))
    _check_preset_kept(base, data)
    try:
        return validate_settings(data)
    except SettingsError as error:
        raise _from_file(error, base, path) from None


def _check_preset_kept(base: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """An override comes too late to lie under the file: it would name a preset and take nothing."""
    before, after = (
        run.get("preset") if isinstance(run := tree.get("run"), Mapping) else None
        for tree in (base, data)
    )
    if after is not None and after != before:
        raise SettingsError(
            f"run.preset = {after!r:.60} is not allowed as an override: write --preset NAME"
        )


def _from_file(
    error: SettingsError, base: Mapping[str, Any], path: str | Path | None
) -> SettingsError:
    """``error`` with the name of the file before it, where the file alone is at fault."""
    if path is None:
        return error
    try:
        validate_settings(base)
    except SettingsError as own:
        if str(own) == str(error):
            return SettingsError(f"{path}: {error}")
    return error


def _base(own: Mapping[str, Any], preset: str | None, path: str | Path | None) -> Mapping[str, Any]:
    """The preset that lies under a file's ``own`` settings: the one asked for, or its own."""
    run = own.get("run")
    named = run.get("preset") if isinstance(run, Mapping) else None
    if preset is not None and isinstance(run, Mapping) and "preset" in run and named != preset:
        raise SettingsError(
            f"{path} says run.preset = {json.dumps(named, default=str)} and the command says "
            f"{preset!r}: leave the file out, or take what the preset decides out of it"
        )
    chosen = preset if preset is not None else named
    if chosen is None or not isinstance(chosen, str):
        return {}  # what is no name is refused with the other values
    if chosen not in PRESETS:
        where = f"{path}: " if preset is None else ""
        raise SettingsError(
            f"{where}run.preset = {chosen!r:.60} is not known{nearest(chosen, PRESETS)}; "
            f"there is: {', '.join(sorted(PRESETS))}"
        )
    return _merged(PRESETS[chosen], {"run": {"preset": chosen}})


def validate_settings(data: Mapping[str, Any]) -> Settings:
    """Check plain data (the content of a settings file) and freeze it.

    Raises:
        SettingsError: an unknown key, a wrong type or a value out of range.
    """
    try:
        # JSON mode is the strict mode that still takes a list for a tuple and 1 for 1.0.
        settings = Settings.model_validate_json(json.dumps(plain(data)), strict=True)
    except NotPlain as error:
        raise SettingsError(str(error)) from None
    except ValidationError as error:
        raise SettingsError(explain(error, known_at=_fields_at)) from None
    problem = _too_large(settings) or _unfit_for_overlap(settings)
    if problem:
        raise SettingsError(problem)
    return settings


def _too_large(settings: Settings) -> str | None:
    """What no machine holds, in settings that are each all right."""
    batch, judged, horizon = settings.meta_batch, settings.evaluation, settings.task.horizon
    return (
        limits.network(settings.policy.hidden_sizes)
        or limits.iteration(batch.tasks, batch.episodes, horizon, settings.inner.steps + 1)
        or limits.evaluation(
            judged.tasks, judged.episodes, judged.steps or 0, horizon, prefix="evaluation."
        )
    )


def _unfit_for_overlap(settings: Settings) -> str | None:
    """An inner step that takes for its own what an older version has collected, where there is one.

    A ratio to the recorded log-probabilities makes up for the difference; the others have none, and
    their gradients would be those of a policy that is not there any more.
    """
    inner = settings.inner
    if not settings.meta_batch.overlap or inner.steps == 0 or inner.objective == "ratio":
        return None
    return (
        f"inner.objective = {inner.objective!r} does not weigh by ratios, and with "
        "meta_batch.overlap = true the data are of the version before: take ratio, or leave "
        "overlap out"
    )


def dump_settings(settings: Settings) -> str:
    """Settings as YAML that :func:`load_settings` reads back to the same settings."""
    return dump_yaml(settings.model_dump(mode="json"))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        text = read_text(path, most=MAX_FILE_BYTES)
    except Unreadable as error:
        raise SettingsError(f"cannot read the settings file {path}: {error}") from None
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
    if not separator or not all(parts) or len(parts) > DEEPEST:
        raise SettingsError(
            f"cannot read the setting {override!r:.80}: write key.path=value, e.g. outer.epochs=4"
        )
    if len(text) > MAX_FILE_BYTES:
        raise SettingsError(f"the value of {key.strip():.80} is longer than {MAX_FILE_BYTES:,}")
    value = _data(text, f"the value of {key.strip():.80}")
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


def _fields_at(location: tuple[str, ...]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
