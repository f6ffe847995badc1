"""Tasks of a registered Gymnasium environment: some of its keywords are drawn from ranges."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Box
from gymnasium.spaces.utils import flatten_space
from gymnasium.wrappers import FlattenObservation

from maml_ray.common.numbers import finite_floats
from maml_ray.config.error_messages import did_you_mean
from maml_ray.config.settings import SettingsError
from maml_ray.envs.user_errors import converted_errors, describe_user_error
from maml_ray.tasks.held_out import uniform_held_out, uniform_training
from maml_ray.tasks.task import Task, TaskDistribution

_SET_BY_US = ("max_episode_steps", "render_mode")
_SHOWN = 12  # keywords in a message
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class GymnasiumTasks(TaskDistribution):
    """Tasks that differ in keyword arguments of one environment, each uniform in a range.

    A fifth of the first range, in slices, is held out for evaluation. Without ranges there is one
    task.

    Args:
        env: Gymnasium id; ``module:id`` imports the module that registers it.
        ranges: lowest and highest value by keyword of the environment.
        options: keyword arguments that all tasks share.

    Raises:
        SettingsError: the environment is not registered or cannot be imported, or takes no such
            keyword.
    """

    def __init__(
        self,
        env: str,
        ranges: Mapping[str, tuple[float, float]],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.env, self.ranges, self.options = env, dict(ranges), dict(options or {})
        known = _keywords(_find_spec(env))
        for section, keys in (("ranges", self.ranges), ("options", self.options)):
            for key in keys:
                _check_keyword(f"task.{section}.{key}", key, known, env)
        for key in self.ranges:
            if key in self.options:
                raise SettingsError(
                    f"task.ranges.{key} and task.options.{key} exclude each other: an option is "
                    "the same for all tasks"
                )

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw from the ranges; the first one without the fifth that is held out."""
        return self._sample(rng, count, uniform_training)

    def sample_held_out(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        """Draw from the ranges; the first one from the fifth that is held out."""
        return self._sample(rng, count, uniform_held_out)

    def _sample(self, rng: np.random.Generator, count: int, draw: Any) -> tuple[Task, ...]:
        columns = []
        for low, high in self.ranges.values():
            columns.append(draw(rng, low, high, count))
            draw = np.random.Generator.uniform
        names = tuple(self.ranges)
        rows = np.array(columns).T if columns else np.empty((count, 0))
        return tuple(_task(dict(zip(names, map(float, row), strict=True))) for row in rows)

    def extremes(self) -> tuple[Task, ...]:
        """Return tasks near both ends of all ranges, which the environment may refuse."""
        return tuple(
            _task({name: low + share * (high - low) for name, (low, high) in self.ranges.items()})
            for share in (0.001, 0.999)  # of the ends themselves none is drawn
        )

    def task(self, parameters: Mapping[str, float]) -> Task:
        """Return the task of ``{"g": 9.8}``: a finite number for each range, inside it or not."""
        if set(parameters) != set(self.ranges):
            form = ", ".join(f'"{name}": <number>' for name in self.ranges)
            raise ValueError(f"a task is {{{form}}}")
        values = finite_floats(parameters)
        return _task({name: values[name] for name in self.ranges})

    def make_env(self, task: Task, *, horizon: int, render_mode: str | None = None) -> gym.Env:
        """Create one environment by ``gymnasium.make``.

        Observations that are no vector are flattened, as there is no place for a wrapper in YAML.
        """
        kwargs: dict[str, Any] = {**self.options, **dict(task.parameters)}
        if render_mode is not None:  # some environments refuse None
            kwargs["render_mode"] = render_mode
        env = gym.make(self.env, max_episode_steps=horizon, **kwargs)
        return FlattenObservation(env) if _can_flatten(env.observation_space) else env


def _can_flatten(space: gym.Space[Any]) -> bool:
    """Return whether a space's elements are no vectors, but Gymnasium can make them such."""
    if isinstance(space, Box) and len(space.shape) == 1:
        return False
    try:
        return isinstance(flatten_space(space), Box)
    except NotImplementedError:  # a space that a package defines
        return False


def _task(values: Mapping[str, float]) -> Task:
    name = ", ".join(f"{key} {value:.3g}" for key, value in values.items())
    return Task(name or "default", tuple(values.items()))


def _find_spec(env: str) -> Any:
    """Return the registration of a Gymnasium id, after importing the module before a colon."""
    module, _, name = env.rpartition(":")
    if module:
        with converted_errors(
            lambda error: SettingsError(
                f"task.env = {env!r:.80}: the module {module:.80} cannot be imported "
                f"({describe_user_error(error)})"
            )
        ):
            importlib.import_module(module)
    if name not in gym.registry:
        hint = did_you_mean(name, gym.registry) or (
            "; the package that registers it may have to be imported: 'module:Name-v0'"
        )
        raise SettingsError(f"task.env = {env!r:.80} is not registered with Gymnasium{hint}")
    return gym.registry[name]


def _keywords(spec: Any) -> list[str] | None:
    """Return the keywords of an environment; None if it takes any.

    Raises:
        SettingsError: it cannot be imported, as if an optional dependency is missing.
    """
    names: list[str] = []
    with converted_errors(
        lambda error: SettingsError(
            f"task.env = {spec.id!r:.80} cannot be loaded: {describe_user_error(error)}"
        )
    ):
        for function in _creators(spec.entry_point):
            parameters = list(inspect.signature(function).parameters.values())
            names += [one.name for one in parameters if one.kind in _NAMED]
            if not any(one.kind is one.VAR_KEYWORD for one in parameters):
                return [name for name in dict.fromkeys(names) if name not in ("self", *_SET_BY_US)]
    return None


def _creators(entry_point: Any) -> list[Any]:
    """Return the functions that keywords of an environment are passed on to, in order."""
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    return _constructors(creator) if isinstance(creator, type) else [creator]


def _constructors(cls: type) -> list[Any]:
    """Return the constructors that a call of ``cls`` passes ``**kwargs`` on to, in order."""
    return [vars(base)["__init__"] for base in cls.__mro__[:-1] if "__init__" in vars(base)]


def _check_keyword(path: str, key: str, known: list[str] | None, env: str) -> None:
    if key in _SET_BY_US:
        raise SettingsError(f"{path} is not allowed: it is set by maml_ray; see task.horizon")
    if known is not None and key not in known:
        raise SettingsError(
            f"{path} is not a keyword of {env}{did_you_mean(key, known)} "
            f"(there are: {', '.join(known[:_SHOWN]) or 'none'}{', ...' * (len(known) > _SHOWN)})"
        )
