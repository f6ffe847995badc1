"""Use a trained policy without Ray: act, collect episodes, adapt to a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maml_ray.common.errors import UserError
from maml_ray.common.html_table import html_table
from maml_ray.common.locations import parse_path
from maml_ray.common.normalization import Normalizer
from maml_ray.common.numbers import check_whole_number
from maml_ray.common.seeding import Purpose, generator, seed_sequence
from maml_ray.config.settings import Settings
from maml_ray.evaluation.support import (
    Support,
    in_simulation,
    number_of_episodes,
    support_offsets,
    support_source,
    take_inner_step,
)
from maml_ray.learning.state import initial_learner_state
from maml_ray.policies.action_sampler import make_sampler, to_env_actions
from maml_ray.policies.context import with_context
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import NumpyParameters, PolicySpec
from maml_ray.rollouts.collector import collect, collect_support
from maml_ray.rollouts.env_cache import EnvCache
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.tasks.loading import OwnTasks, resolve_tasks
from maml_ray.tasks.task import Task, TaskDistribution, draw_tasks
from maml_ray.tasks.task_lookup import find_task

if TYPE_CHECKING:
    from maml_ray.evaluation.model_export import ExportedModel

WantedTask = Task | str | Mapping[str, float]
"""A task, its name in a family of a few tasks, or its parameters, such as ``{"direction": 1}``."""


@dataclass(frozen=True)
class Agent:
    """A policy and the settings it was trained with; immutable, adapting returns a new agent.

    Attributes:
        settings: settings of the run that trained it.
        spec: architecture of the policy.
        parameters: float32 arrays by name.
        normalizer: observation normalizer; None to use observations as they are.
        adaptation_steps: inner steps taken from the meta-trained parameters.
        own_tasks: tasks given in Python in place of those that the settings name.
    """

    settings: Settings
    spec: PolicySpec
    parameters: NumpyParameters
    normalizer: Normalizer | None
    adaptation_steps: int = 0
    own_tasks: OwnTasks | None = None

    def __repr__(self) -> str:
        size = sum(value.size for value in self.parameters.values())
        return (
            f"Agent(task={self.settings.task.name!r}, "
            f"observation_size={self.spec.observation_size}, "
            f"action_size={self.spec.action_size}, parameters={size}, "
            f"adaptation_steps={self.adaptation_steps})"
        )

    def _repr_html_(self) -> str:
        spec = self.spec
        layers = " x ".join(map(str, (spec.observation_size, *spec.hidden_sizes, spec.action_size)))
        rows = [
            ("task family", self.settings.task.name),
            (
                "policy",
                f"{layers}, {spec.activation}, {'discrete' if spec.discrete else 'Gaussian'}",
            ),
            ("inner steps taken", str(self.adaptation_steps)),
        ]
        return html_table("Agent", (), rows)

    @property
    def tasks(self) -> TaskDistribution:
        """The task distribution that the policy was trained for, as a new instance.

        Raises:
            SettingsError: it is not installed here, or was given in Python and must be again.
        """
        return resolve_tasks(self.settings.task, self.own_tasks)

    @property
    def policy(self) -> NumpyPolicy:
        """The policy as a function of observations, in NumPy."""
        return NumpyPolicy(self.spec, self.parameters, self.normalizer)

    @property
    def context_size(self) -> int | None:
        """Numbers of the context that inner steps change; None if they change something else."""
        inner = self.settings.inner
        return inner.context_size if inner.parameters == "context" else None

    def act(
        self,
        observations: NDArray[np.floating],
        *,
        explore: bool = False,
        rng: np.random.Generator | None = None,
    ) -> NDArray[Any]:
        """Return actions for one observation (D,) or for many (..., D).

        Args:
            observations: unnormalized, as the environment returns them.
            explore: sample from the policy; otherwise return its mean or most probable action.
            rng: generator for the sampling; freshly seeded by default.

        Returns:
            What the environment should receive. Continuous actions: (..., A), see
            :meth:`to_env_actions`; discrete actions: integers (...).

        Raises:
            ValueError: the last axis is not the policy's observation size.
        """
        inputs = np.asarray(observations)
        if inputs.dtype != np.float64:
            inputs = inputs.astype(np.float64 if inputs.dtype.kind in "iu" else np.float32)
        if inputs.shape[-1:] != (self.spec.observation_size,):
            raise ValueError(
                f"observations must have last axis {self.spec.observation_size}, "
                f"got shape {inputs.shape}"
            )
        batch = inputs.reshape(-1, self.spec.observation_size)
        rng = (rng or np.random.default_rng()) if explore else None
        actions = make_sampler(self.policy, 1, len(batch), rng).act(0, batch)
        return self.to_env_actions(actions.reshape(*inputs.shape[:-1], actions.shape[-1]))

    def to_env_actions(self, actions: NDArray[np.float32]) -> NDArray[Any]:
        """Return what an environment should receive for ``actions`` (..., A) of :attr:`policy`.

        Multiplied by ``policy.action_scale``, rescaled or clipped to the environment's bounds by
        ``policy.action_bounds``, and of the type of its action space. Support data need the
        actions themselves. Of discrete actions (..., 1), the environment's integers (...).
        """
        return to_env_actions(self.spec, actions)

    def predict(
        self,
        observation: NDArray[np.floating],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[np.bool_] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Return actions as Stable-Baselines3's ``predict`` does, for programs that call it.

        Its ``evaluate_policy`` takes an agent in place of a model. Continuous actions are clipped
        to the action space as they were in training: see ``policy.action_bounds``.

        Args:
            observation: one observation (D,) or those of n environments (n, D), unnormalized.
            state: returned as it is: the policy has no memory.
            episode_start: (n,) whether an episode begins; ignored for the same reason.
            deterministic: take the mean or most probable action; otherwise sample.

        Returns:
            Actions as :meth:`act` returns them, and ``state``.

        Raises:
            ValueError: the last axis is not the policy's observation size.
        """
        return self.act(observation, explore=not deterministic), state

    def task(self, wanted: WantedTask) -> Task:
        """Return the task of the run's family with a name, such as ``"forward"``, or parameters.

        Raises:
            UserError: the family has no such task; the message says which it has.
        """
        return self._find_task(partial(find_task, self.tasks), wanted)

    def sample_tasks(self, count: int, *, seed: int = 0) -> tuple[Task, ...]:
        """Draw held-out tasks of the run's family; of a finite family, any of its tasks.

        Raises:
            UserError: ``count`` or ``seed`` is not a whole number from 0 on.
        """
        check_whole_number("count", count, least=0)
        check_whole_number("seed", seed, least=0)
        rng = generator(seed, Purpose.EVALUATION)
        return draw_tasks(self.tasks, rng, count, held_out=True)

    def simulations(self) -> EnvCache:
        """Return a cache of environments to reuse over several calls of :meth:`collect`."""
        return EnvCache(self.tasks, self.settings.task.horizon)

    def collect(
        self,
        task: WantedTask | None = None,
        *,
        episodes: int | None = None,
        seed: int | np.random.SeedSequence = 0,
        explore: bool = True,
        simulations: EnvCache | None = None,
    ) -> Trajectories:
        """Roll out episodes of ``task`` with the policy as it is.

        To adapt to, :meth:`collect_support` collects.

        Args:
            task: a task, its name or its parameters; by default the first of ``sample_tasks(1)``.
            episodes: number of episodes; ``meta_batch.episodes``, the size of a support set, by
                default.
            seed: seed of initial states and action noise.
            explore: sample actions; otherwise take the mean action.
            simulations: environments to reuse; by default they are created for this call.

        Raises:
            UserError: the family has no such task, ``episodes`` or ``seed`` is not a whole number,
                or a simulation failed.
        """
        roll_out = partial(collect, self.policy, explore=explore)
        return self._in_simulation(roll_out, task, episodes, seed, simulations)

    def collect_support(
        self,
        task: WantedTask | None = None,
        *,
        episodes: int | None = None,
        seed: int | np.random.SeedSequence = 0,
        simulations: EnvCache | None = None,
    ) -> Trajectories:
        """Roll out episodes of ``task`` for an inner step to learn from, as in training.

        They differ from those of :meth:`collect` if ``inner.parameters`` is ``context``: then each
        acts with a context of its own, see :meth:`support_agents`.

        Args:
            task, episodes, seed, simulations: see :meth:`collect`.

        Raises:
            UserError: see :meth:`collect`; or there is only one episode to move a context by.
        """
        roll_out = partial(
            collect_support, self.settings.inner, self.spec, self.parameters, self.normalizer
        )
        return self._in_simulation(roll_out, task, episodes, seed, simulations)

    def support_agents(self, episodes: int | None = None) -> list[Agent]:
        """Return the agent that acts in each of the K episodes of a support set.

        For support data from elsewhere than simulation, such as a robot. Without a context they are
        all this agent. With one, each has a context of its own, and the trajectories need the
        ``context_offsets`` (K, C) of :meth:`context_offsets`. Equal offsets share an agent.

        Args:
            episodes: K; as in training by default.

        Raises:
            UserError: ``episodes`` is not a whole number, or too few to move a context by.
        """
        offsets = self.context_offsets(episodes)
        if offsets is None:
            return [self] * number_of_episodes(self.settings, episodes)
        at = partial(with_context, self.spec, self.parameters)
        agents = {tuple(context): replace(self, parameters=at(context)) for context in offsets}
        return [agents[tuple(context)] for context in offsets]

    def context_offsets(self, episodes: int | None = None) -> NDArray[np.float32] | None:
        """Return the context that each support episode acts with, its offset from 0, (K, C).

        None if ``inner.parameters`` is not ``context``.

        Args:
            episodes: K; as in training by default.

        Raises:
            UserError: ``episodes`` is not a whole number, or too few to move a context by.
        """
        return support_offsets(self.settings, episodes)

    def _in_simulation(
        self,
        roll_out: Callable[..., Trajectories],
        task: WantedTask | None,
        episodes: int | None,
        seed: int | np.random.SeedSequence,
        simulations: EnvCache | None,
    ) -> Trajectories:
        """Call ``roll_out`` with the environments of ``task``; see :meth:`collect`."""
        episodes = number_of_episodes(self.settings, episodes)
        if simulations is None:
            with self.simulations() as own:
                return self._in_simulation(roll_out, task, episodes, seed, own)
        if not isinstance(seed, np.random.SeedSequence):
            check_whole_number("seed", seed, least=0)
            seed = seed_sequence(seed, Purpose.EVALUATION, 0)
        wanted = self.sample_tasks(1)[0] if task is None else task
        env = simulations.get(self._find_task(simulations.find, wanted), episodes)
        settings = self.settings.task
        return roll_out(env, settings.horizon, seed, info_metrics=settings.info_metrics)

    def untrained(self) -> Agent:
        """Return the agent with its initial random parameters, as a baseline."""
        parameters = initial_learner_state(self.settings, self.spec).parameters
        return replace(self, parameters=parameters, adaptation_steps=0)

    def adapt(
        self,
        support: Support | WantedTask,
        *,
        steps: int | None = None,
        episodes: int | None = None,
        seed: int = 0,
    ) -> Agent:
        """Return the agent after inner steps on data of one task; this agent is unchanged.

        Each inner step needs a support set of its own, collected by the policy before that step:
        the first by this agent, the second by the agent after one step, and so on.

        Args:
            support: where the support sets come from:

                - one support set, from :meth:`collect_support` or elsewhere, for one step;
                - a sequence of support sets, one for each step;
                - a function that is called before each step with the agent adapted so far and
                  returns a support set of it, for example from a robot;
                - a task, its name or its parameters, to collect them in simulation.
            steps: number of inner steps. By default as many as support sets are given; for a
                function or a task, ``inner.steps`` of the settings but at least one.
            episodes: for a task: episodes in a support set; by default as in training.
            seed: for a task: random seed of the simulation.

        Raises:
            UserError: ``support`` is none of these, ``steps`` is not the number of support sets
                given, a support set does not fit the policy, the family has no such task, or the
                adapted parameters are not finite.
        """
        if steps is not None:
            check_whole_number("steps", steps, least=1)
        check_whole_number("seed", seed, least=0)
        if isinstance(support, Task | str | Mapping):
            with self.simulations() as simulations:
                return self.adapt(in_simulation(support, episodes, seed, simulations), steps=steps)
        next_support, steps = support_source(support, steps, max(1, self.settings.inner.steps))
        adapted = self
        for _ in range(steps):
            taken = adapted.adaptation_steps
            parameters = take_inner_step(
                self.settings,
                self.spec,
                adapted.parameters,
                self.normalizer,
                next_support(adapted),
                taken,
            )
            adapted = replace(adapted, parameters=parameters, adaptation_steps=taken + 1)
        return adapted

    def save(self, path: str | Path) -> None:
        """Write the policy and its settings to a new folder, which :func:`maml_ray.load` reads.

        Raises:
            RunDirError: the folder exists or cannot be written.
        """
        from maml_ray.evaluation.saved_policy import save_policy  # imports this module

        save_policy(self, parse_path(path, "path"))

    def export(self, path: str | Path, *, format: str | None = None) -> ExportedModel:
        """Write the policy as a program for other runtimes: see :func:`export_model`."""
        from maml_ray.evaluation.model_export import export_model  # imports this module

        return export_model(self, path, format=format)

    def _find_task(self, find: Callable[[WantedTask], Task], wanted: WantedTask) -> Task:
        try:
            return find(wanted)
        except ValueError as error:
            raise UserError(
                f"there is no such task of {self.settings.task.name}: {error}"
            ) from None
