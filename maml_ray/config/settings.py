"""Define the settings of a run, as frozen models: one section for each key of ``deploy.yaml``.

Every field has a default, so an empty file is a valid run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    field_validator,
)

from maml_ray.common.errors import UserError
from maml_ray.config.presets import PRESETS


class SettingsError(UserError, ValueError):
    """A setting is invalid; the message names its key, its value and what is allowed."""


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
"""An option of a task distribution, as strict about types as a setting."""


class _Section(BaseModel):
    """Base of all sections: frozen, no type conversion, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class RunSettings(_Section):
    """Name, seed and length of the run, and where its files are kept."""

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
            raise ValueError(f"not a preset; presets: {', '.join(sorted(PRESETS))}")
        return value


class TaskSettings(_Section):
    """The task distribution."""

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
    def _not_above_initial(cls, value: float, info: ValidationInfo) -> float:
        initial = info.data.get("initial_log_std", value)
        if value > initial:
            raise ValueError(f"must not be above policy.initial_log_std ({initial})")
        return value


class MetaBatchSettings(_Section):
    """Rollouts of one iteration."""

    tasks: Count = 10
    episodes: Count = 10
    async_collection: bool = False


class AdvantageSettings(_Section):
    """How advantages are computed from rewards."""

    discount: Fraction = 0.99
    gae_lambda: Fraction = 0.95
    baseline: Literal["linear", "zero"] = "linear"
    bootstrap_time_limit: bool = False
    normalize: bool = True

    @field_validator("bootstrap_time_limit")
    @classmethod
    def _values_exist_and_are_finite(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("baseline") == "zero":
            raise ValueError(
                "there are no values to bootstrap from with advantages.baseline = zero"
            )
        if value and info.data.get("discount") == 1.0:
            raise ValueError("values are infinite with advantages.discount = 1")
        return value


class InnerSettings(_Section):
    """The inner loop: adaptation to one task."""

    steps: Annotated[int, Field(ge=0, le=5)] = 1
    learning_rate: Positive = 0.1
    learn_inner_rates: bool = False
    objective: Literal["ratio", "dice", "log_prob"] = "ratio"
    l2: NonNegative = 0.0


class TrustRegionSettings(_Section):
    """The step of ``outer.objective: trpo``, which does not use Adam."""

    max_kl: Positive = 0.01
    cg_iterations: Count = 10
    damping: NonNegative = 1e-5
    backtrack_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.8
    max_backtracks: Count = 15


class OuterSettings(_Section):
    """The outer loop: the meta-update."""

    objective: Annotated[str, Field(min_length=1)] = "ppo"
    order: Literal["second", "first", "hybrid"] = "second"
    first_order_iterations: Annotated[int, Field(ge=0)] = 0
    learning_rate: Positive = 6e-3
    final_learning_rate: NonNegative | None = 4e-4
    epochs: Count = 1
    tasks_per_minibatch: Count | None = 2
    clip: Positive = 0.3
    max_query_kl: Positive | None = 0.05
    max_rollbacks: Annotated[int, Field(ge=0)] = 0
    inner_kl_coefficient: NonNegative = 5e-4
    e_maml_coefficient: NonNegative = 0.0
    weight_decay: NonNegative = 0.0
    max_gradient_norm: Positive | None = None
    trust_region: TrustRegionSettings = TrustRegionSettings()
    diagnose_every: Count | None = 10

    @field_validator("max_rollbacks")
    @classmethod
    def _needs_a_kl_limit(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("max_query_kl") is None:
            raise ValueError("nothing is rolled back with outer.max_query_kl = null")
        return value

    @field_validator("first_order_iterations")
    @classmethod
    def _only_for_hybrid(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("order") != "hybrid":
            raise ValueError("the order changes during a run with outer.order = hybrid only")
        return value


class EvaluationSettings(_Section):
    """Evaluation at the end of a run and by ``maml-ray evaluate``."""

    tasks: Count = 5
    episodes: Count = 10
    steps: Annotated[int, Field(ge=0)] | None = None
    video: bool = True


class ClusterSettings(_Section):
    """What a run asks of Ray, and how long it waits."""

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
    def _not_above_maximum(cls, value: int, info: ValidationInfo) -> int:
        maximum = info.data.get("rollout_actors")
        if maximum is not None and value > maximum:
            raise ValueError(f"must not be above cluster.rollout_actors ({maximum})")
        return value


class FaultSettings(_Section):
    """Budgets of faults, by kind; a run ends when one is exceeded."""

    infrastructure: Budget = 100
    preemptions: Budget = 1000
    discarded_episodes: Budget = 1000
    skipped_updates: Budget = 10
    missed_checkpoints: Budget = 300
    fallback_directory: Annotated[str, Field(min_length=1)] | None = None


class Settings(_Section):
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
