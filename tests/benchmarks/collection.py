"""How close one rollout actor comes to the physics alone, and others beside it, by family.

Episodes are kept from ending: a walker that falls would leave the collection, while the physics
alone went on, at the price of a body that lies on the floor. So both sides simulate the same
states, from the same seeds, with the same actions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.vector import AutoresetMode
from mujoco import rollout as mujoco_rollout
from numpy.typing import NDArray

from maml_ray.config.sections import TaskSettings
from maml_ray.config.settings import Settings
from maml_ray.envs.locomotion import FallingVectorEnv
from maml_ray.envs.mujoco_vector_env import MujocoVectorEnv
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicySpec, initial_parameters
from maml_ray.rollouts.collector import collect, reset_seeds
from maml_ray.tasks.families.locomotion import LocomotionTasks
from maml_ray.tasks.loading import resolve_tasks
from maml_ray.tasks.registry import env_id
from tests.benchmarks.peers import HIDDEN, HORIZON, PEERS, Peer, Rounds, Task
from tests.benchmarks.ratios import Ratio
from tests.docs.pages import python_block

SEED = np.random.SeedSequence(0)
FULL = "half-cheetah-backward"
"""The family of which all peers take part."""
SWIMMERS = "swimmers"
"""No family of this package: the batch of one's own that docs/tasks.md shows."""
ENVPOOL = {FULL: "HalfCheetah-v4"}
"""What EnvPool has the like of, doing the same work."""


@dataclass(frozen=True)
class Beside:
    """A peer's part in a contest.

    Attributes:
        name, does: of the peer.
        us: microseconds a step, the median of the rounds; None where it took no part.
        ratio: its time over ours: how many times faster we are.
        absent: why it took no part.
    """

    name: str
    does: str
    us: float | None = None
    ratio: Ratio | None = None
    absent: str | None = None


@dataclass(frozen=True)
class CollectionResult:
    """Microseconds per environment step, medians of interleaved rounds, and their ratios.

    Attributes:
        family: the tasks.
        episodes: that were collected at once.
        physics_us: of the physics alone.
        collected_us: ours, policy, random numbers, rewards and storage included.
        share: the first over the second: 1 is the physical limit.
        peers: who else took part.
    """

    family: str
    episodes: int
    physics_us: float
    collected_us: float
    share: Ratio
    peers: tuple[Beside, ...]

    def ratios(self) -> dict[str, Ratio]:
        """Return ratios by name; more is better."""
        contest = f"{self.family}, {self.episodes} episodes"
        ratios = {f"{contest}: share of physics speed": self.share}
        for peer in self.peers:
            if peer.ratio is not None:
                ratios[f"{contest}: times as fast as {peer.name}"] = peer.ratio
        return ratios


@dataclass(frozen=True)
class Bodies:
    """What is simulated, without ends of episodes.

    Attributes:
        env: Gymnasium's id of a single one.
        keywords: its arguments.
        batch: of so many.
    """

    env: str
    keywords: Mapping[str, Any]
    batch: Callable[[int], MujocoVectorEnv]

    def single(self) -> Any:
        """Return one of them, without wrappers."""
        return gym.make(self.env, **self.keywords).unwrapped


def bodies_of(family: str) -> Bodies:
    """Return the bodies of a task of ``family``, or the swimmers."""
    if family == SWIMMERS:
        page: dict[str, Any] = {}
        exec(python_block("tasks.md", "class Swimmers"), page)
        single, swimmers = page["SwimmerEnv"](), page["Swimmers"]
        return Bodies(
            "Swimmer-v5", {}, lambda count: swimmers(single, count, max_episode_steps=HORIZON)
        )
    tasks = resolve_tasks(TaskSettings(name=family))
    assert isinstance(tasks, LocomotionTasks), f"{family} has no physics"
    (task,) = tasks.sample(np.random.default_rng(0), 1)
    keywords = tasks.task_kwargs(task)
    if issubclass(tasks.vector, FallingVectorEnv):
        keywords["terminate_when_unhealthy"] = False

    def batch(count: int) -> MujocoVectorEnv:
        return tasks.vector(
            count,
            max_episode_steps=HORIZON,
            autoreset_mode=AutoresetMode.DISABLED,
            **keywords,
        )

    return Bodies(env_id(tasks.vector.single.__name__), keywords, batch)


class Contest:
    """One family's batch, a policy for it (else a fresh one), and its actions."""

    def __init__(self, family: str, episodes: int, policy: NumpyPolicy | None = None) -> None:
        self.family, self.episodes, self.bodies = family, episodes, bodies_of(family)
        self.env = self.bodies.batch(episodes)
        settings = Settings().policy
        assert (settings.hidden_sizes, settings.activation) == (HIDDEN, "tanh")
        spec = PolicySpec.from_spaces(
            settings, self.env.single_observation_space, self.env.single_action_space
        )
        parameters = initial_parameters(spec, np.random.default_rng(0))
        self.policy = policy or NumpyPolicy(spec, parameters)
        trajectories = self.collected()
        assert trajectories.mask.all(), f"an episode of {family} has ended"
        self.actions = trajectories.actions

    def collected(self) -> Any:
        """What a rollout actor does."""
        return collect(self.policy, self.env, HORIZON, SEED)

    def physics(self) -> Rounds:
        """``mujoco.rollout`` on this thread: the collection's own first states and actions."""
        env = self.bodies.single()
        model, data = env.model, mujoco.MjData(env.model)
        kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
        states = np.zeros((self.episodes, mujoco.mj_stateSize(model, kind)))
        for row, seed in enumerate(reset_seeds(SEED, self.episodes)):
            env.reset(seed=seed)
            mujoco.mj_getState(model, env.data, states[row], kind)
        controls = np.repeat(self.actions.astype(np.float64), env.frame_skip, axis=1)
        simulator = mujoco_rollout.Rollout(nthread=0)
        return lambda: simulator.rollout(model, data, states, controls)

    def task(self) -> Task:
        """The same for the peers."""
        bodies = self.bodies
        return Task(bodies.env, bodies.keywords, self.actions, ENVPOOL.get(self.family))


def measure(family: str, episodes: int, rounds: int) -> CollectionResult:
    """Time ``rounds`` rounds of every contender in turn, ``episodes`` episodes each."""
    contest = Contest(family, episodes)
    task = contest.task()
    wanted = [peer for peer in PEERS if peer.everywhere or (family == FULL and peer.fits(task))]
    contenders: dict[str, Rounds] = {"physics": contest.physics(), "collected": contest.collected}
    with ExitStack() as opened:
        for peer in wanted:
            try:
                contenders[peer.name] = peer.prepare(task, opened)
            except ImportError:
                continue
        times = _interleaved(contenders, rounds, episodes * HORIZON)
    ours = times["collected"]
    return CollectionResult(
        family=family,
        episodes=episodes,
        physics_us=float(np.median(times["physics"])),
        collected_us=float(np.median(ours)),
        share=Ratio.of(times["physics"] / ours),
        peers=tuple(_beside(peer, times.get(peer.name), ours) for peer in wanted),
    )


def _beside(peer: Peer, times: NDArray[np.float64] | None, ours: NDArray[np.float64]) -> Beside:
    if times is None:
        return Beside(peer.name, peer.does, absent="not installed")
    return Beside(peer.name, peer.does, float(np.median(times)), Ratio.of(times / ours))


def physics_alone(
    family: str, episodes: int, rounds: int, policy: NumpyPolicy | None = None
) -> float:
    """Microseconds per step of the physics alone, the median of ``rounds``.

    Where ``policy`` leads it (a fresh one by default): a cheetah that runs is another's work than
    one that twitches.
    """
    physics = Contest(family, episodes, policy).physics()
    times = _interleaved({"physics": physics}, rounds, episodes * HORIZON)
    return float(np.median(times["physics"]))


def _interleaved(
    contenders: dict[str, Callable[[], Any]], rounds: int, steps: int
) -> dict[str, NDArray[np.float64]]:
    """Microseconds per step of each contender, round by round; one round warms up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            times[name].append((time.perf_counter() - start) * 1e6 / steps)
    return {name: np.asarray(values[1:]) for name, values in times.items()}
