"""A trained policy for use without Ray: act, collect, adapt."""

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
from maml_ray.policies.action_sampler import for_environment, make_sampler
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import NumpyParameters, PolicySpec
from maml_ray.rollouts.collector import collect
from maml_ray.rollouts.env_cache import EnvCache
from maml_ray.rollouts.trajectories import Trajectories
from maml_ray.tasks.registry import resolve_tasks
from maml_ray.tasks.task import Task


@dataclass(frozen=True)
class Agent:
    """A policy and the settings that it was trained with; adapting gives another agent.

    Attributes:
        settings: of the run.
        spec: sizes of the policy.
        parameters: float32 arrays by name.
        normalizer: of observations; None to take them as they are.
        adaptation_steps: inner steps taken since the meta-trained parameters.
    """

    settings: Settings
    spec: PolicySpec
    parameters: NumpyParameters
    normalizer: Normalizer | None
    adaptation_steps: int = 0

    @property
    def policy(self) -> NumpyPolicy:
        """The policy as a function of observations."""
        return NumpyPolicy(self.spec, self.parameters, self.normalizer)

    def act(
        self,
        observations: NDArray[np.floating],
        *,
        explore: bool = False,
        rng: np.random.Generator | None = None,
    ) -> NDArray[Any]:
        """Actions for one observation (D,) or for many (..., D), as the environment takes them.

        Continuous actions are float32 (..., A), scaled by ``policy.action_scale``; discrete ones
        integers (...).

        Args:
            observations: as the environment gives them.
            explore: sample from the policy; otherwise its mean or most probable action.
            rng: for the sampling; fresh entropy by default.

        Raises:
            ValueError: the last axis is not of the policy's observation size.
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
        return for_environment(self.spec, actions.reshape(*inputs.shape[:-1], actions.shape[-1]))

    def sample_tasks(self, count: int, *, seed: int = 0) -> tuple[Task, ...]:
        """Draw tasks of the run's distribution that training has not seen, where there are any."""
        rng = generator(seed, Purpose.EVALUATION)
        return resolve_tasks(self.settings.task).sample_held_out(rng, count)

    def simulations(self) -> EnvCache:
        """Environments of the run's tasks, to be kept from one :meth:`collect` to the next."""
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
        """Roll out episodes of ``task``; by default as many as one support set has.

        Args:
            task: one of :meth:`sample_tasks`; drawn with seed 0 by default.
            episodes: how many.
            seed: for initial states and action noise.
            explore: sample actions; otherwise take the mean action.
            simulations: environments to use; made for this call, and closed, by default.
        """
        if simulations is None:
            with self.simulations() as own:
                return self.collect(
                    task, episodes=episodes, seed=seed, explore=explore, simulations=own
                )
        if isinstance(seed, int):
            seed = seed_sequence(seed, Purpose.EVALUATION, 0)
        task = task or self.sample_tasks(1)[0]
        env = simulations.of(task, episodes or self.settings.meta_batch.episodes)
        return collect(self.policy, env, self.settings.task.horizon, seed, explore=explore)

    def untrained(self) -> Agent:
        """The same with fresh random parameters: what training is held against."""
        fresh = initial_learner_state(self.settings, self.spec).parameters
        return replace(self, parameters=fresh, adaptation_steps=0)

    def adapt(self, support: Trajectories | Sequence[Trajectories]) -> Agent:
        """The agent after one inner step on ``support``, or one on each of several.

        For data of :meth:`collect`, or of your own robot: the log-probabilities must be those of
        the policy that collected it, which for the first step is this one.

        Raises:
            UserError: the adapted parameters are not finite.
        """
        sets = [support] if isinstance(support, Trajectories) else list(support)
        theta = self.parameters
        for trajectories in sets:
            theta = adapt_policy(self.settings, self.spec, theta, trajectories, self.normalizer)
        if not all(np.isfinite(value).all() for value in theta.values()):
            raise UserError(
                "the adapted parameters are not finite: lower inner.learning_rate "
                f"({self.settings.inner.learning_rate:g})"
            )
        return replace(
            self,
            parameters=theta,
            adaptation_steps=self.adaptation_steps + len(sets),
        )
