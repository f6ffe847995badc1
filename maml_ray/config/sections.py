"""Define the sections of a run's settings, as frozen models: one for each key of ``deploy.yaml``.

Every field has a default, so an empty file is a valid run, and a description. From these come the
comments of ``deploy.yaml``, ``docs/settings.md``, the JSON schema and ``maml-ray explain``; run
``python -m tests.config.generated_files`` after changing one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator, model_validator

from maml_ray.config.presets import PRESETS
from maml_ray.config.section import Section
from maml_ray.config.value_types import (
    Budget,
    Count,
    Fraction,
    InfoNames,
    LocalPath,
    Location,
    LogStd,
    NonNegative,
    Positive,
    Range,
    Seconds,
    Width,
    check_cluster_address,
)


class RunSettings(Section):
    """Name, seed and length of the run, and where its files are kept."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        "half-cheetah-backward",
        description="Prefix of the run directory; its exact name with --resume auto.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="Random seed; the same seed gives bit-identical parameters."
    )
    iterations: Count = Field(200, description="Number of meta-updates.")
    directory: LocalPath = Field(
        "runs",
        description="Parent of the run directories; ~ and $NAME are those of the machine that "
        "starts the run.",
    )
    storage: Location | None = Field(
        None,
        description="Where checkpoints are kept; null: in the run directory; or a URL, with one "
        "folder per run: s3://bucket/runs, file:///mnt/shared.",
    )
    checkpoint_every: Count = Field(
        1,
        description="Iterations between checkpoints; also at the end and on Ctrl-C.",
    )
    keep_checkpoints: Count = Field(
        3, description="Number of newest checkpoints kept, besides the best by return."
    )
    preset: str | None = Field(
        None,
        description="Preset these settings started from; `maml-ray presets` lists them.",
    )

    @field_validator("preset")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in PRESETS:
            raise ValueError(f"not a preset; presets: {', '.join(sorted(PRESETS))}")
        return value


class TaskSettings(Section):
    """The tasks: a family, or ranges of an environment's keywords."""

    name: Annotated[str, Field(min_length=1)] = Field(
        "half-cheetah-backward",
        description="Built-in family, see `maml-ray tasks`; or your own, as "
        '"my_package.my_module:MyTasks".',
    )
    env: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Gymnasium environment, varied by ranges, instead of name."
    )
    ranges: dict[str, Range] = Field(
        {}, description="Of keywords of env, drawn uniformly for each task: {g: [5, 15]}."
    )
    horizon: Count = Field(
        200, description="Steps per episode; a half-cheetah step is 0.05 s of simulated time."
    )
    options: dict[str, Any] = Field(
        {},
        description="Options of the family, such as {speed_range: [0, 3]}; `maml-ray tasks` lists"
        " them.",
    )
    observe_parameters: bool = Field(
        False, description="Add the task parameters to observations: the papers' oracle."
    )
    info_metrics: InfoNames = Field(
        (),
        max_length=20,
        description="Entries of an environment's info to show as metrics, averaged over the steps "
        'that report them: [success, distance]. "speed" is always shown.',
    )
    _recorded_in: str | None = PrivateAttr(None)

    @property
    def recorded_in(self) -> str | None:
        """Folder of the run whose record these settings are; None if the user wrote them.

        Modules that a record names are not imported: its author may be somebody else.
        """
        return self._recorded_in

    def __eq__(self, other: object) -> bool:
        """Compare the settings, wherever they were read."""
        if not isinstance(other, TaskSettings):
            return NotImplemented
        return bool(self.__dict__ == other.__dict__)

    @model_validator(mode="before")
    @classmethod
    def _env_is_the_name(cls, data: Any) -> Any:
        """Name the tasks of an environment after it: reports show ``task.name``."""
        if isinstance(data, dict) and isinstance(data.get("env"), str):
            return {"name": data["env"], **data}
        return data

    @field_validator("env")
    @classmethod
    def _excludes_name(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("name", value) != value:
            raise ValueError(f"leave task.name = {info.data['name']!r:.80} out, or task.env")
        return value

    @field_validator("ranges")
    @classmethod
    def _from_low_to_high(
        cls, value: dict[str, tuple[float, float]], info: ValidationInfo
    ) -> dict[str, tuple[float, float]]:
        if value and info.data.get("env", "") is None:
            raise ValueError("ranges are of keywords of task.env: set it to a Gymnasium id")
        for key, (low, high) in value.items():
            if not low < high:
                raise ValueError(f"write {key}: [low, high] with low < high")
        return value


class PolicySettings(Section):
    """The policy: a Gaussian or, for discrete actions, categorical MLP."""

    hidden_sizes: Annotated[tuple[Width, ...], Field(max_length=16)] = Field(
        (64, 64), description="Widths of the hidden layers."
    )
    activation: Literal["tanh", "relu"] = Field(
        "tanh", description="Activation function of the hidden layers: tanh or relu."
    )
    normalize_observations: bool = Field(
        True, description="Normalize observations by running statistics, saved in checkpoints."
    )
    initial_log_std: LogStd = Field(
        0.0, description="Initial log standard deviation; 0 is a standard deviation of 1."
    )
    min_log_std: LogStd = Field(-3.0, description="Lower bound of the log standard deviation.")
    action_scale: Positive = Field(
        1.0, description="Factor on continuous actions before they reach the environment."
    )
    action_bounds: Literal["clip", "rescale", "none"] | None = Field(
        None,
        description="Scaled actions are clipped to the environment's bounds; rescale: first maps "
        "[-1, 1] to them; none: sent as they are; null: as the tasks want, mostly clip.",
    )

    @field_validator("min_log_std")
    @classmethod
    def _not_above_initial(cls, value: float, info: ValidationInfo) -> float:
        initial = info.data.get("initial_log_std", value)
        if value > initial:
            raise ValueError(f"must not be above policy.initial_log_std ({initial})")
        return value


class MetaBatchSettings(Section):
    """Rollouts of one iteration."""

    tasks: Count = Field(10, description="Number of tasks, each adapted to separately.")
    episodes: Count = Field(
        10, description="Episodes per task, for support and for query data each."
    )
    async_collection: bool = Field(
        False,
        description="Collect the next meta-batch during the update, one version behind.",
    )


class AdvantageSettings(Section):
    """How advantages are computed from rewards."""

    discount: Fraction = Field(0.99, description="Discount factor.")
    gae_lambda: Fraction = Field(
        0.95, description="Lambda of GAE; 1: discounted returns minus the baseline."
    )
    baseline: Literal["linear", "zero"] = Field(
        "linear",
        description="Value baseline: linear, fitted per task, for support and query data each; or"
        " zero.",
    )
    bootstrap_time_limit: bool = Field(
        False, description="Add the value of the state at the time limit; the papers do not."
    )
    normalize: bool = Field(
        True,
        description="Scale to mean 0 and standard deviation 1, per task, for support and query "
        "data each.",
    )

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


class InnerSettings(Section):
    """The inner loop: adaptation to one task."""

    steps: Annotated[int, Field(ge=0, le=5)] = Field(
        1, description="Gradient steps, each with new support data; 0: no adaptation."
    )
    learning_rate: Positive = Field(
        0.01,
        description="Learning rate of the gradient steps. The default suits a single task; "
        "families of several tasks want about 0.1, and a context about 3, as the presets have.",
    )
    parameters: Literal["all", "head", "context"] = Field(
        "all",
        description="What the gradient steps change: all parameters, the last layer (head: ANIL), "
        "or a vector that the first layer has as a further input (context: as in CAVIA, but by "
        "the returns of support episodes that try other contexts; without objective and l2).",
    )
    context_size: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="Numbers in that vector; each takes a pair of support episodes."
    )
    context_variance: Positive = Field(
        0.1,
        description="Variance of the vector's first weights, times context_size. Small: the policy "
        "changes gradually with the vector; large (2): a policy of its own for each of two tasks.",
    )
    learn_inner_rates: bool = Field(
        False,
        description="Meta-SGD: learn one rate for each number that the gradient steps "
        "change, from learning_rate on.",
    )
    objective: Literal["ratio", "dice", "log_prob"] = Field(
        "ratio",
        description="Loss: ratio (ProMP's low-variance curvature), dice (unbiased, noisier) or "
        "log_prob (as in the source notebook).",
    )
    l2: NonNegative = Field(
        0.0, description="Weight of the sum of squared parameters in the inner loss."
    )


class TrustRegionSettings(Section):
    """The step of ``outer.objective: trpo``, which does not use Adam."""

    max_kl: Positive = Field(
        0.01, description="Maximum KL of the adapted policies per update (nats)."
    )
    cg_iterations: Count = Field(10, description="Iterations of conjugate gradients.")
    damping: NonNegative = Field(1e-5, description="Added to the diagonal of the Fisher matrix.")
    backtrack_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.8, description="Factor on the step at each backtrack of the line search."
    )
    max_backtracks: Count = Field(
        15, description="Maximum backtracks; then the parameters stay as they were."
    )


class OuterSettings(Section):
    """The outer loop: the meta-update."""

    objective: Annotated[str, Field(min_length=1)] = Field(
        "ppo",
        description="Loss: ppo (ProMP's clipped ratio on query data), trpo or reinforce; or "
        "reptile (towards the adapted parameters).",
    )
    order: Literal["second", "first", "hybrid"] = Field(
        "second",
        description="second: differentiate through the inner step; first: do not; hybrid: first "
        "for first_order_iterations, then second.",
    )
    first_order_iterations: Annotated[int, Field(ge=0)] = Field(
        0, description="Iterations in first order, with order hybrid."
    )
    learning_rate: Positive = Field(6e-3, description="Learning rate of Adam.")
    final_learning_rate: NonNegative | None = Field(
        4e-4, description="Rate at the last iteration, annealed linearly; null: constant."
    )
    anneal_iterations: Count | None = Field(
        None,
        description="Iterations of this annealing; after them the final rate stays. null: those "
        "that run.iterations has when the run starts.",
    )
    epochs: Count = Field(1, description="Passes over the meta-batch.")
    tasks_per_minibatch: Count | None = Field(2, description="Tasks per gradient step; null: all.")
    clip: Positive = Field(0.3, description="Clip range of the query ratio (PPO).")
    max_query_kl: Positive | None = Field(
        0.05,
        description="Maximum KL of the adapted policies per update (nats); null: none (can "
        "diverge).",
    )
    max_rollbacks: Annotated[int, Field(ge=0)] = Field(
        3,
        description="Steps beyond max_query_kl that an update retries at half the rate; then it "
        "ends before such a step.",
    )
    inner_kl_coefficient: NonNegative = Field(
        5e-4, description="KL penalty towards the policy that collected the support data."
    )
    e_maml_coefficient: NonNegative = Field(
        0.0, description="E-MAML's credit to the support data for the adapted return."
    )
    weight_decay: NonNegative = Field(0.0, description="L2 penalty in Adam.")
    max_gradient_norm: Positive | None = Field(
        None, description="Clips the meta-gradient to this norm; null: never."
    )
    trust_region: TrustRegionSettings = TrustRegionSettings()
    diagnose_every: Count | None = Field(
        10, description="Iterations between measurements of gradient noise; null: never."
    )

    @field_validator("first_order_iterations")
    @classmethod
    def _only_for_hybrid(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("order") != "hybrid":
            raise ValueError("the order changes during a run with outer.order = hybrid only")
        return value


class EvaluationSettings(Section):
    """Evaluation at the end of a run and by ``maml-ray evaluate``."""

    tasks: Count = Field(
        5, description="Number of tasks, held out from training if the family allows it."
    )
    episodes: Count = Field(
        10, description="Episodes per task and number of steps, for sampled and mean actions each."
    )
    steps: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Inner steps; null: inner.steps, but at least 1."
    )
    video: bool = Field(
        True, description="Record the policy before and after adaptation, side by side."
    )


class ClusterSettings(Section):
    """What a run asks of Ray, and how long it waits."""

    address: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Ray cluster: auto, host:port or ray://host:port; null: start Ray on this "
        "machine.",
    )
    rollout_actors: Count | None = Field(
        None, description="Maximum of actors, one CPU each; null: one per CPU of the cluster."
    )
    min_rollout_actors: Count = Field(
        1, description="Actors needed to start; others join as the cluster grows."
    )
    learner_device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Device of the learner: auto (a GPU if the cluster has one), cpu, or cuda to "
        "require a GPU.",
    )
    learner_threads: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="CPU threads of the learner; null: all cores of its machine."
    )
    learner_memory_gib: Annotated[float, Field(gt=0.0, le=4096.0)] | None = Field(
        None, description="GPU memory per chunk of tasks (GiB); null: half of the free memory."
    )
    standby_learner: bool = Field(
        False,
        description="Keep a second learner ready to take over: 0.5 GB, and a GPU if the learner "
        "has one.",
    )
    autoscaler: bool = Field(
        False, description="Request nodes for rollout_actors, or for one actor per task."
    )
    start_timeout_s: Seconds = Field(
        600.0, description="Limit for actors to start; a job first installs its packages."
    )
    task_timeout_s: Seconds = Field(
        300.0, description="Limit for one task on an actor, and for one update."
    )
    max_task_attempts: Count = Field(3, description="Attempts at one task before the run stops.")
    straggler_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = Field(
        3.0,
        description="An idle actor repeats a task that takes this times the usual time; null: "
        "never.",
    )
    stall_s: Seconds = Field(
        60.0, description="Time without a result until hung actors are logged and replaced."
    )
    empty_timeout_s: Seconds = Field(
        600.0, description="Limit for nodes to return when no rollout actor is left."
    )

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None:
            check_cluster_address(value, "cluster.address")
        return value

    @field_validator("min_rollout_actors")
    @classmethod
    def _not_above_maximum(cls, value: int, info: ValidationInfo) -> int:
        maximum = info.data.get("rollout_actors")
        if maximum is not None and value > maximum:
            raise ValueError(f"must not be above cluster.rollout_actors ({maximum})")
        return value


class FaultSettings(Section):
    """Budgets of faults, by kind; a run ends when one is exceeded."""

    infrastructure: Budget = Field(100, description="Lost or hung actors and learners.")
    preemptions: Budget = Field(1000, description="Nodes removed after an announcement.")
    discarded_episodes: Budget = Field(
        1000, description="Failed simulations, each replaced by another."
    )
    skipped_updates: Budget = Field(
        10, description="Updates skipped in a row, because of numbers that are not finite."
    )
    missed_checkpoints: Budget = Field(
        300, description="Checkpoints missed in a row, because the storage fails."
    )
    fallback_directory: LocalPath | None = Field(
        None,
        description="Directory for a checkpoint that the storage refuses; null: a temporary "
        "folder.",
    )
