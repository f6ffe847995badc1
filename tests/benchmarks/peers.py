"""Other libraries on the same task, batch and policy size, on one core: one function per peer.

All simulate episodes of :data:`HORIZON` steps of the same single environment, as many at once as
the contest says. EnvPool has its own half-cheetah, whose reward differs but costs the same. The
table names peers that are not installed. Each peer says what it does in a step: one that only steps
is given the actions, and stores nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

HORIZON = 200
HIDDEN = (64, 64)
"""Hidden sizes of every policy: two layers of tanh, and a Gaussian with a vector of log-stds."""


@dataclass(frozen=True)
class Task:
    """What is simulated.

    Attributes:
        env: Gymnasium's id of the single environment.
        keywords: its arguments.
        actions: (K, HORIZON, A), for those who are handed them.
        envpool: EnvPool's name of the same work; None where it has none.
    """

    env: str
    keywords: Mapping[str, Any]
    actions: NDArray[np.float32]
    envpool: str | None

    @property
    def episodes(self) -> int:
        """K, how many are simulated at once."""
        return len(self.actions)


Rounds = Callable[[], Any]
"""One round of a contender: HORIZON steps of every environment."""


@dataclass(frozen=True)
class Peer:
    """A library to compare with.

    Attributes:
        name: in the table.
        does: in a step, in words.
        package: that it needs.
        prepare: makes everything ready, and gives a round; what it opens goes on the stack. Raises
            :class:`ImportError` where it is not installed.
        fits: whether it can do the task at all.
        everywhere: whether it takes part in every contest, not only the half-cheetah's.
    """

    name: str
    does: str
    package: str
    prepare: Callable[[Task, ExitStack], Rounds]
    fits: Callable[[Task], bool] = lambda task: True
    everywhere: bool = False


def _gymnasium(mode: str) -> Callable[[Task, ExitStack], Rounds]:
    def prepare(task: Task, opened: ExitStack) -> Rounds:
        env = gym.make_vec(task.env, task.episodes, vectorization_mode=mode, **task.keywords)
        opened.callback(env.close)
        return lambda: _step_through(env, task.actions)

    return prepare


def _step_through(env: Any, actions: NDArray[np.float32]) -> None:
    env.reset(seed=0)
    for step in range(HORIZON):
        env.step(actions[:, step])


def _envpool(task: Task, opened: ExitStack) -> Rounds:
    import envpool

    env = envpool.make_gymnasium(task.envpool, num_envs=task.episodes, num_threads=1)
    opened.callback(env.close)
    actions = task.actions.astype(np.float64)

    def step_through() -> None:
        env.reset()
        for step in range(HORIZON):
            env.step(actions[:, step])

    return step_through


def _pufferlib(task: Task, opened: ExitStack) -> Rounds:
    from pufferlib.emulation import GymnasiumPufferEnv
    from pufferlib.vector import Serial, make

    def single(buf: Any = None, seed: int = 0) -> Any:
        return GymnasiumPufferEnv(env=gym.make(task.env, **task.keywords), buf=buf, seed=seed)

    env = make(single, num_envs=task.episodes, backend=Serial)
    opened.callback(env.close)
    low, high = env.single_action_space.low, env.single_action_space.high
    actions = np.clip(task.actions, low, high)  # it refuses others; the physics clips them itself
    return lambda: _step_through(env, actions)


def _batched(make: Callable[[Any, int], Any], **reset: Any) -> Callable[[Task, ExitStack], Rounds]:
    """Step a batch that ``make`` makes of a model and a number of simulations."""

    def prepare(task: Task, opened: ExitStack) -> Rounds:
        env: Any = gym.make(task.env, **task.keywords).unwrapped
        opened.callback(env.close)
        batch = make(env.model, task.episodes)
        positions, velocities, controls = (batch.bind(name) for name in ("qpos", "qvel", "ctrl"))
        observations = np.empty((HORIZON, *positions.shape)), np.empty((HORIZON, *velocities.shape))

        def step_through() -> None:
            batch.reset(**reset)
            for i in range(task.episodes):
                env.reset(seed=i)
                positions[i], velocities[i] = env.data.qpos, env.data.qvel
            for step in range(HORIZON):
                controls[:] = task.actions[:, step]
                batch.step(nstep=env.frame_skip)
                observations[0][step], observations[1][step] = positions, velocities

        return step_through

    return prepare


def _mujoco_batch(model: Any, episodes: int) -> Any:
    from mujoco.batch import Batch  # MuJoCo 3.17 and newer

    return Batch(model, episodes, nthread=1)


def _mjbatch(model: Any, episodes: int) -> Any:
    from mjbatch import Batch  # version 0.1.4 needs MuJoCo 3.14.0

    return Batch(model, episodes, num_threads=1)


def _stable_baselines(task: Task, opened: ExitStack) -> Rounds:
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = DummyVecEnv([lambda: gym.make(task.env, **task.keywords)] * task.episodes)
    opened.callback(env.close)
    layers = {"pi": list(HIDDEN), "vf": []}  # what it needs beyond a policy: as little as can be
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=HORIZON,
        batch_size=HORIZON,
        policy_kwargs={"net_arch": layers, "activation_fn": torch.nn.Tanh},
        device="cpu",
        seed=0,
    )
    _, callback = model._setup_learn(total_timesteps=1)
    return lambda: model.collect_rollouts(env, callback, model.rollout_buffer, HORIZON)


def _torchrl(batch: Callable[[Task], Any]) -> Callable[[Task, ExitStack], Rounds]:
    def prepare(task: Task, opened: ExitStack) -> Rounds:
        from torchrl.collectors import Collector

        env = batch(task)
        collector = Collector(
            env,
            _torchrl_policy(env, task.actions.shape[-1]),
            frames_per_batch=task.episodes * HORIZON,
            total_frames=-1,
            auto_register_policy_transforms=False,
        )
        opened.callback(collector.shutdown)
        batches = iter(collector)
        return lambda: next(batches)

    return prepare


def _torchrl_serial(task: Task) -> Any:
    from torchrl.envs import DoubleToFloat, GymWrapper, SerialEnv, TransformedEnv

    def single() -> Any:
        return GymWrapper(gym.make(task.env, **task.keywords))

    return TransformedEnv(SerialEnv(task.episodes, single), DoubleToFloat())


def _torchrl_vector(task: Task) -> Any:
    from torchrl.envs import DoubleToFloat, GymWrapper, TransformedEnv

    env = gym.make_vec(
        task.env,
        task.episodes,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},  # what TorchRL expects
        **task.keywords,
    )
    return TransformedEnv(GymWrapper(env), DoubleToFloat())


def _torchrl_policy(env: Any, actions: int) -> Any:
    from tensordict.nn import AddStateIndependentNormalScale, TensorDictModule
    from torchrl.modules import MLP, IndependentNormal, ProbabilisticActor

    mean = MLP(out_features=actions, num_cells=HIDDEN, activation_class=torch.nn.Tanh)
    gaussian = torch.nn.Sequential(mean, AddStateIndependentNormalScale(actions))
    policy = ProbabilisticActor(
        TensorDictModule(gaussian, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=env.action_spec,
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )
    policy(env.reset())  # its first layer takes its size from what it sees
    return policy


PEERS = (
    Peer("gymnasium sync", "steps only", "gymnasium", _gymnasium("sync"), everywhere=True),
    Peer("gymnasium async", "steps only, a process each", "gymnasium", _gymnasium("async")),
    Peer(
        "mujoco.batch", "physics only", "mujoco", _batched(_mujoco_batch, stage=0), everywhere=True
    ),
    Peer("mjbatch", "physics only", "mjbatch", _batched(_mjbatch), everywhere=True),
    Peer("envpool", "steps only", "envpool", _envpool, fits=lambda task: task.envpool is not None),
    Peer("pufferlib, Serial", "steps only", "pufferlib-core", _pufferlib),
    Peer("stable-baselines3", "policy, value, storage", "stable-baselines3", _stable_baselines),
    Peer("torchrl, SerialEnv", "policy, storage", "torchrl", _torchrl(_torchrl_serial)),
    Peer("torchrl, gymnasium sync", "policy, storage", "torchrl", _torchrl(_torchrl_vector)),
)
"""In the order of the table. Stable-Baselines3 is PPO's ``collect_rollouts`` on a ``DummyVecEnv``;
TorchRL its ``Collector``, on a batch of its own and on Gymnasium's."""
