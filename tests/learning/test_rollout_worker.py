from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from maml_ray.backends.dispatch import make_backend
from maml_ray.backends.inner_step import adapt_policy
from maml_ray.common.normalization import Normalizer
from maml_ray.config.loading import validate_settings
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.kernels import inner_step
from maml_ray.kernels.types import Samples
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, policy_spec, sample_tasks
from maml_ray.maml.adaptation import adapt_to_task
from maml_ray.maml.distributions import to_torch
from maml_ray.maml.meta_parameters import initial_meta_parameters
from maml_ray.policies.spec import NumpyParameters, PolicyParameters, initial_parameters
from maml_ray.rollouts.advantages import compute_advantages
from maml_ray.rollouts.samples import make_samples
from maml_ray.rollouts.trajectories import TaskRollouts, Trajectories
from maml_ray.tasks.task import Task
from tests.learning_runs import change
from tests.oracles import meta as meta_oracles
from tests.oracles import naive as oracles
from tests.tasks.families import PendulumTasks

TASK = Task("backward")
ARRAYS = ("observations", "actions", "log_probs", "rewards", "mask")


def pendulum(settings: Settings) -> Settings:
    name = f"{__name__}:PendulumTasks"
    return settings.model_copy(update={"task": settings.task.model_copy(update={"name": name})})


@pytest.fixture
def worker(small_settings: Settings) -> Iterator[RolloutWorker]:
    worker = RolloutWorker(small_settings)
    yield worker
    worker.close()


def parameters_of(settings: Settings, version: int = 4) -> PolicyParameters:
    spec = policy_spec(settings)
    values = initial_parameters(spec, np.random.default_rng(0))
    size = (spec.observation_size,)
    normalizer = Normalizer(np.full(size, 0.3, np.float32), np.full(size, 0.5, np.float32))
    return PolicyParameters(version, values, normalizer)


def adapt(
    worker: RolloutWorker,
    values: Mapping[str, NDArray[np.float32]],
    support: Trajectories,
    normalizer: Normalizer | None,
) -> NumpyParameters:
    settings = worker.settings
    return adapt_policy(
        settings.inner, settings.advantages, worker.spec, values, support, normalizer
    )


def assignment(iteration: int = 4, task_index: int = 1, task: Task = TASK) -> Assignment:
    return Assignment(iteration, task_index, task, version=4)


def phases(rollouts: TaskRollouts) -> tuple[Trajectories, ...]:
    return (*rollouts.support, rollouts.query)


def identical(first: TaskRollouts, second: TaskRollouts) -> bool:
    return all(
        np.array_equal(getattr(a, name), getattr(b, name))
        for a, b in zip(phases(first), phases(second), strict=True)
        for name in ARRAYS
    )


def test_rollouts_are_labelled_and_shaped(worker: RolloutWorker) -> None:
    rollouts, timings = worker.roll_out(parameters_of(worker.settings), assignment())
    assert (rollouts.task, rollouts.task_index, rollouts.version) == (TASK, 1, 4)
    assert len(rollouts.support) == 2
    for phase in phases(rollouts):
        assert phase.observations.shape == (2, 20, 17)
        assert phase.actions.shape == (2, 20, 6)
    assert rollouts.env_steps == 3 * 2 * 20
    assert timings.collect_s > 0
    assert timings.adapt_s > 0


def test_two_workers_give_the_same_bits_whatever_they_did_before(worker: RolloutWorker) -> None:
    parameters, other = parameters_of(worker.settings), RolloutWorker(worker.settings)
    other.roll_out(parameters, assignment(task_index=0))
    other.roll_out(parameters, assignment(iteration=9))
    first, _ = worker.roll_out(parameters, assignment())
    assert identical(first, other.roll_out(parameters, assignment())[0])
    assert identical(first, worker.roll_out(parameters, assignment())[0])
    other.close()


def test_nothing_is_drawn_twice(worker: RolloutWorker) -> None:
    """Phases, tasks, iterations and seeds each have noise and initial states of their own."""
    parameters = parameters_of(worker.settings)
    run = worker.settings.run.model_copy(update={"seed": 4})
    reseeded = RolloutWorker(worker.settings.model_copy(update={"run": run}))
    rollouts = [
        worker.roll_out(parameters, assignment())[0],
        worker.roll_out(parameters, assignment(task_index=2))[0],
        worker.roll_out(parameters, assignment(iteration=5))[0],
        reseeded.roll_out(parameters, assignment())[0],
    ]
    starts = [
        episode.tobytes()
        for rollout in rollouts
        for phase in phases(rollout)
        for array in (phase.observations[:, 0], phase.actions[:, 0])
        for episode in array
    ]
    assert len(set(starts)) == len(starts) == 4 * 3 * 2 * 2
    reseeded.close()


def test_each_phase_is_collected_by_the_policy_adapted_to_the_ones_before(
    worker: RolloutWorker,
) -> None:
    """Log-probabilities under parameters adapted with autograd, by a loop written here."""
    settings, snapshot = worker.settings, parameters_of(worker.settings)
    rollouts, _ = worker.roll_out(snapshot, assignment())
    theta = {name: v.double().requires_grad_() for name, v in to_torch(snapshot.values).items()}
    for number, phase in enumerate(phases(rollouts)):
        seen = np.clip((phase.observations.astype(np.float64) - 0.3) * 0.5, -10, 10)
        policy = meta_oracles.action_distribution(worker.spec, theta, torch.from_numpy(seen))
        log_probs = policy.log_prob(torch.tensor(phase.actions).double())
        np.testing.assert_allclose(phase.log_probs, log_probs.detach().numpy(), atol=1e-4)
        if number == 2:
            break
        weights = torch.tensor(compute_advantages(phase, settings.advantages)).double()
        slopes = torch.autograd.grad(-(log_probs * weights).mean(), list(theta.values()))
        theta = {
            name: (value - settings.inner.learning_rate * slope).detach().requires_grad_()
            for (name, value), slope in zip(theta.items(), slopes, strict=True)
        }
    moved = oracles.flat(theta) - oracles.flat(to_torch(snapshot.values))
    assert float(moved.norm()) > 1e-2


@pytest.mark.parametrize("learn_inner_rates", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
def test_each_support_episode_acts_with_its_context_and_the_query_with_the_adapted_one(
    small_settings: Settings, steps: int, learn_inner_rates: bool
) -> None:
    """Five episodes move two numbers; log-probabilities and gradients by loops written here."""
    inner = {"parameters": "context", "context_size": 2, "learn_inner_rates": learn_inner_rates}
    settings = change(small_settings, "inner", steps=steps, learning_rate=3.0, **inner)
    settings = change(settings, "meta_batch", episodes=5)
    worker, plain = RolloutWorker(settings), parameters_of(settings)
    values = initial_meta_parameters(worker.spec, settings.inner, np.random.default_rng(0))
    values["mean.weight"] = np.float32(50) * values["mean.weight"]
    rollouts, _ = worker.roll_out(replace(plain, values=values), assignment())
    worker.close()
    theta = {name: value.double() for name, value in to_torch(values).items()}
    per_step = torch.zeros(2).double()
    for number, phase in enumerate(phases(rollouts)):
        offsets = 2.0 * torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0]]).double()
        if number == steps:
            adapted, _ = adapt_to_task(settings.inner, worker.spec, theta, (), per_step)
        for k in range(5):
            if number < steps:
                bias = theta["hidden_0.bias"] + theta["context_weight"] @ torch.tanh(offsets[k])
                adapted = {**theta, "hidden_0.bias": bias}
            seen = np.clip((phase.observations[k].astype(np.float64) - 0.3) * 0.5, -10, 10)
            policy = meta_oracles.action_distribution(worker.spec, adapted, torch.from_numpy(seen))
            log_probs = policy.log_prob(torch.tensor(phase.actions[k]).double())
            np.testing.assert_allclose(phase.log_probs[k], log_probs.numpy(), atol=1e-3)
        returns = phase.rewards.astype(np.float64).sum(axis=1) / 20
        if number < steps:
            differences = torch.tensor([returns[0] - returns[1], returns[2] - returns[3]])
            per_step += differences / 4.0 / steps
    assert float(per_step.norm()) > 1e-3


def test_adapting_changes_neither_parameters_nor_data(worker: RolloutWorker) -> None:
    snapshot = parameters_of(worker.settings)
    rollouts, _ = worker.roll_out(snapshot, assignment())
    before = {name: value.copy() for name, value in snapshot.values.items()}
    support = rollouts.support[0]
    saved = [getattr(support, name).copy() for name in ARRAYS]
    values, normalizer = snapshot.values, snapshot.normalizer
    adapted = adapt(worker, values, support, normalizer)
    for name, value in values.items():
        np.testing.assert_array_equal(value, before[name])
        assert not np.shares_memory(adapted[name], value)
    for name, array in zip(ARRAYS, saved, strict=True):
        np.testing.assert_array_equal(getattr(support, name), array)


def test_adapting_to_what_ray_delivers_compiles_nothing_more(worker: RolloutWorker) -> None:
    """Its arrays are read-only, for which the loops would be compiled anew, for seconds."""
    snapshot = parameters_of(worker.settings)
    support = worker.roll_out(snapshot, assignment())[0].support[0]
    loop: Any = inner_step.take_step
    kinds = len(loop.signatures)
    for name in ARRAYS:
        getattr(support, name).flags.writeable = False
    adapt(worker, snapshot.values, support, snapshot.normalizer)
    assert len(loop.signatures) == kinds > 0


def test_published_parameters_are_not_written_to(worker: RolloutWorker) -> None:
    snapshot = parameters_of(worker.settings)
    for value in snapshot.values.values():
        value.flags.writeable = False  # as Ray delivers them
    worker.roll_out(snapshot, assignment())


def test_another_version_is_refused(worker: RolloutWorker) -> None:
    with pytest.raises(ValueError, match="version 4, got version 5"):
        worker.roll_out(parameters_of(worker.settings, version=5), assignment())


def test_tasks_depend_on_seed_and_iteration_alone(small_settings: Settings) -> None:
    tasks = PendulumTasks()
    first = sample_tasks(small_settings, tasks, 0)
    assert len(set(first)) == 3
    assert sample_tasks(small_settings, tasks, 0) == first
    assert not set(sample_tasks(small_settings, tasks, 1)) & set(first)
    run = small_settings.run.model_copy(update={"seed": 8})
    reseeded = small_settings.model_copy(update={"run": run})
    assert not set(sample_tasks(reseeded, tasks, 0)) & set(first)


def test_a_worker_changes_tasks(small_settings: Settings) -> None:
    settings = pendulum(small_settings)
    light, heavy, _ = sample_tasks(settings, PendulumTasks(), 0)
    parameters, worker, fresh = (
        parameters_of(settings),
        RolloutWorker(settings),
        RolloutWorker(settings),
    )
    worker.roll_out(parameters, assignment(task=light))
    changed, _ = worker.roll_out(parameters, assignment(task=heavy))
    assert identical(changed, fresh.roll_out(parameters, assignment(task=heavy))[0])
    assert not identical(changed, worker.roll_out(parameters, assignment(task=light))[0])
    worker.close()
    worker.close()
    again, _ = worker.roll_out(parameters, assignment(task=heavy))
    assert identical(changed, again)
    worker.close()
    fresh.close()


def test_sizes_are_read_off_the_task(small_settings: Settings) -> None:
    spec = policy_spec(small_settings)
    assert (spec.observation_size, spec.action_size, spec.hidden_sizes) == (17, 6, (8,))
    spec = policy_spec(pendulum(small_settings))
    assert (spec.observation_size, spec.action_size) == (3, 1)


class CartPoleTasks(PendulumTasks):
    def make_env(
        self, task: Task, *, horizon: int, render_mode: str | None = None
    ) -> gym.Env[Any, Any]:
        return gym.make("CartPole-v1", max_episode_steps=horizon)


def test_discrete_actions_are_chosen_among_and_recorded_by_number() -> None:
    settings = validate_settings(
        {"task": {"name": f"{__name__}:CartPoleTasks"}, "policy": {"hidden_sizes": [8]}}
    )
    spec = policy_spec(settings)
    assert (spec.discrete, spec.observation_size, spec.action_size) == (True, 4, 2)
    worker = RolloutWorker(settings)
    rollouts, _ = worker.roll_out(parameters_of(settings), assignment())
    for phase in phases(rollouts):
        assert phase.actions.shape == (10, 200, 1)
        assert set(np.unique(phase.actions[phase.mask])) == {0.0, 1.0}
        assert phase.terminated is not None
        assert phase.terminated.all()
    worker.close()


class ManyChoices(PendulumTasks):
    def make_env(
        self, task: Task, *, horizon: int, render_mode: str | None = None
    ) -> gym.Env[Any, Any]:
        env = super().make_env(task, horizon=horizon)
        env.action_space = gym.spaces.MultiDiscrete([2, 2])
        return env


def test_actions_of_another_kind_are_refused_by_name() -> None:
    settings = validate_settings({"task": {"name": f"{__name__}:ManyChoices"}})
    with pytest.raises(SettingsError, match=r"ManyChoices.*actions must be Discrete or a Box"):
        policy_spec(settings)


def test_assignments_introduce_themselves() -> None:
    assert str(assignment()) == "iteration 4, task 1"


def random_rollouts(**changes: object) -> Trajectories:
    return replace(oracles.random_trajectories(np.random.default_rng(0)), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rewards", np.zeros(8, np.float32), "rewards"),
        ("observations", np.zeros((3, 8), np.float32), "observations"),
        ("actions", np.zeros((8, 3, 2), np.float32), "actions"),
        ("log_probs", np.zeros((3, 8, 2), np.float32), "log_probs"),
        ("mask", np.ones((3, 7), np.bool_), "mask"),
        ("rewards", np.zeros((3, 8)), "rewards must be float32"),
        ("mask", np.ones((3, 8), np.int64), "mask must be bool"),
        ("final_observations", np.zeros((3, 8, 4), np.float32), "final_observations"),
        ("terminated", np.zeros((3, 8), np.bool_), "terminated"),
        ("context_offsets", np.zeros((8, 1), np.float32), r"context_offsets .*\(3, n\)"),
        ("context_offsets", np.zeros(3, np.float32), "context_offsets"),
        ("info_means", {"speed": np.zeros(8, np.float32)}, "speed"),
    ],
)
def test_trajectories_check_their_arrays(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_rollouts(**{field: value})


@pytest.mark.parametrize("objective", ["ratio", "dice"])
def test_adapting_for_an_actor_is_to_the_bit_what_the_learner_differentiates(
    small_settings: Settings, worker: RolloutWorker, objective: str
) -> None:
    inner = small_settings.inner.model_copy(update={"objective": objective})
    settings = small_settings.model_copy(update={"inner": inner})
    snapshot, spec = parameters_of(settings), policy_spec(settings)
    support = worker.roll_out(snapshot, assignment())[0].support[0]
    theta = to_torch(snapshot.values)
    arrays = make_samples(support, compute_advantages(support, settings.advantages))
    samples = Samples(*(torch.from_numpy(array)[None] for array in arrays))
    found = adapt_policy(settings.inner, settings.advantages, spec, snapshot.values, support, None)
    backend = make_backend(settings, spec, torch.device("cpu"))
    nothing = torch.zeros(1, 0)
    _, expected = backend.behavior_policies(theta, (samples,), samples, nothing)
    _, adapted = backend.behavior_policies(to_torch(found), (), samples, nothing)
    torch.testing.assert_close(adapted, expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    ("inner", "needed"),
    [
        ({"objective": "ratio"}, []),
        ({"objective": "dice"}, ["torch"]),
        ({"objective": "dice", "parameters": "context"}, []),
    ],
    ids=str,
)
def test_a_run_imports_pytorch_in_its_learner_alone(
    inner: dict[str, str], needed: list[str]
) -> None:
    """A second and a half of a core and 180 MB of every other process; its compiler in none."""
    program = f"""
import sys
import maml_ray.runtime.actors, maml_ray.runs.train
from maml_ray.backends.inner_step import make_inner_step
from maml_ray.config.loading import validate_settings
from maml_ray.maml.meta_parameters import initial_meta_parameters
from maml_ray.policies.spec import PolicyParameters, PolicySpec
from maml_ray.learning.rollout_worker import Assignment, RolloutWorker, sample_tasks
import numpy as np
sizes = {{"tasks": 1, "episodes": 2}}
task = {{"name": "half-cheetah-backward", "horizon": 4}}
settings = validate_settings(
    {{"task": task, "meta_batch": sizes, "inner": {inner!r}}}
)
worker = RolloutWorker(settings)
values = initial_meta_parameters(worker.spec, settings.inner, np.random.default_rng(0))
task = sample_tasks(settings, worker.tasks, 0)[0]
worker.roll_out(PolicyParameters(0, values, None), Assignment(0, 0, task, 0))
if settings.inner.parameters == "context":  # as with the kernels' policies, and others
    spec = PolicySpec(3, 2, (4,), "tanh", 0.0, -3.0, discrete=True)
    values = initial_meta_parameters(spec, settings.inner, np.random.default_rng(0))
    make_inner_step(settings.inner, spec)(values, np.ones(1, np.float32), 0)["context"]
print([name for name in ("torch", "torch._dynamo", "matplotlib") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == str(needed)
