"""Use a trained policy without Ray: act, collect episodes, adapt to a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maml_ray.backends.inner_step import adapt_policy
from maml_ray.common.errors import UserError
from maml_ray.common.normalization import Normalizer
from maml_ray.common.seeding import Purpose, generator, seed_sequence
from maml_ray.config.settings import Settings
from maml_ray.learning.state import initial_learner_state
from maml_ray.policies.action_sampler import make_sampler, to_env_actions
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import NumpyParameters, PolicySpec
from maml_ray.rollouts.collector import collect
from maml_ray.rollouts.env_cache import EnvCache
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.tasks.loading import resolve_tasks
from maml_ray.tasks.task import Task


@dataclass(frozen=True)
class Agent:
    """A policy and the settings it was trained with; immutable, adapting returns a new agent.

    Attributes:
        settings: settings of the run that trained it.
        spec: architecture of the policy.
        parameters: float32 arrays by name.
        normalizer: observation normalizer; None to use observations as they are.
        adaptation_steps: inner steps taken from the meta-trained parameters.
    """

    settings: Settings
    spec: PolicySpec
    parameters: NumpyParameters
    normalizer: Normalizer | None
    adaptation_steps: int = 0

    def __repr__(self) -> str:
        size = sum(value.size for value in self.parameters.values())
        return (
            f"Agent(task={self.settings.task.name!r}, "
            f"observation_size={self.spec.observation_size}, "
            f"action_size={self.spec.action_size}, parameters={size}, "
            f"adaptation_steps={self.adaptation_steps})"
        )

    @property
    def policy(self) -> NumpyPolicy:
        """The policy as a function of observations, in NumPy."""
        return NumpyPolicy(self.spec, self.parameters, self.normalizer)

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
            Continuous actions: float32 (..., A), scaled by ``policy.action_scale``; discrete
            actions: integers (...).

        Raises:
            ValueError: the last axis is not the policy's observation size.
        """
        inputs = np.asarray(observations, dtype=np.float32)
        if inputs.shape[-1:] != (self.spec.observation_size,):
            raise ValueError(
                f"observations must have last axis {self.spec.observation_size}, "
                f"got shape {inputs.shape}"
            )
        batch = inputs.reshape(-1, self.spec.observation_size)
        rng = (rng or np.random.default_rng()) if explore else None
        actions = make_sampler(self.policy, 1, len(batch), rng).act(0, batch)
        return to_env_actions(self.spec, actions.reshape(*inputs.shape[:-1], actions.shape[-1]))

    def sample_tasks(self, count: int, *, seed: int = 0) -> tuple[Task, ...]:
        """Draw held-out tasks of the run's family; of a finite family, any of its tasks."""
        rng = generator(seed, Purpose.EVALUATION)
        return resolve_tasks(self.settings.task).sample_held_out(rng, count)

    def simulations(self) -> EnvCache:
        """Return a cache of environments to reuse over several calls of :meth:`collect`."""
        return EnvCache(resolve_tasks(self.settings.task), self.settings.task.horizon)

    def collect(
        self,
        task: Task | None = None,
        *,
        episodes: int | None = None,
        seed: int | np.random.SeedSequence = 0,
        explore: bool = True,
        simulations: EnvCache | None = None,
    ) -> Trajectories:
        """Roll out episodes of ``task``.

        Args:
            task: by default the first of ``sample_tasks(1)``.
            episodes: number of episodes; ``meta_batch.episodes``, the size of a support set, by
                default.
            seed: seed of initial states and action noise.
            explore: sample actions; otherwise take the mean action.
            simulations: environments to reuse; by default they are created for this call.
        """
        if simulations is None:
            with self.simulations() as own:
                return self.collect(
                    task, episodes=episodes, seed=seed, explore=explore, simulations=own
                )
        if isinstance(seed, int):
            seed = seed_sequence(seed, Purpose.EVALUATION, 0)
        task = task or self.sample_tasks(1)[0]
        env = simulations.get(task, episodes or self.settings.meta_batch.episodes)
        return collect(self.policy, env, self.settings.task.horizon, seed, explore=explore)

    def untrained(self) -> Agent:
        """Return the agent with its initial random parameters, as a baseline."""
        parameters = initial_learner_state(self.settings, self.spec).parameters
        return replace(self, parameters=parameters, adaptation_steps=0)

    def adapt(self, support: Trajectories | Sequence[Trajectories]) -> Agent:
        """Return the agent after one inner step on each support set.

        Args:
            support: one support set or several, from :meth:`collect` or from elsewhere. Its
                log-probabilities must be those of the policy that collected it: for the first
                step, this one.

        Raises:
            UserError: the adapted parameters are not finite.
        """
        sets = [support] if isinstance(support, Trajectories) else list(support)
        parameters = self.parameters
        for trajectories in sets:
            parameters = adapt_policy(
                self.settings.inner,
                self.settings.advantages,
                self.spec,
                parameters,
                trajectories,
                self.normalizer,
            )
        if not all(np.isfinite(value).all() for value in parameters.values()):
            raise UserError(
                "the adapted parameters are not finite: lower inner.learning_rate "
                f"({self.settings.inner.learning_rate:g})"
            )
        return replace(
            self,
            parameters=parameters,
            adaptation_steps=self.adaptation_steps + len(sets),
        )
