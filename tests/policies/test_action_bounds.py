"""What a policy samples gets into the environment's bounds, and stays as sampled in the data."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray
from scipy.stats import norm

from maml_ray.config.sections import PolicySettings
from maml_ray.policies.action_sampler import at_bounds, from_env_actions, to_env_actions
from maml_ray.policies.bounds_warning import bounds_warning
from maml_ray.policies.numpy_policy import NumpyPolicy
from maml_ray.policies.spec import PolicySpec, initial_parameters
from maml_ray.rollouts.collector import collect

OBSERVATIONS = Box(-np.inf, np.inf, (3,), np.float32)
ASYMMETRIC = Box(np.array([0.0, 5.0], np.float32), np.array([1.0, 10.0], np.float32))
SPACES: dict[str, Any] = {
    "symmetric": Box(-1.0, 1.0, (2,), np.float32),
    "wide": Box(-2.0, 2.0, (2,), np.float32),
    "asymmetric": ASYMMETRIC,
    "not in binary": Box(-0.1, 0.7, (2,), np.float64),
    "half precision": Box(-0.3, 0.7, (2,), np.float16),
    "half open": Box(np.array([-np.inf, 0.0]), np.array([1.0, np.inf]), dtype=np.float64),
    "open": Box(-np.inf, np.inf, (2,), np.float32),
}


def spec_for(space: gym.Space[Any], mode: Any = None, scale: float = 1.0) -> PolicySpec:
    settings = PolicySettings(action_bounds=mode, action_scale=scale, hidden_sizes=(4,))
    return PolicySpec.from_spaces(settings, OBSERVATIONS, space)


def samples(seed: int = 0) -> NDArray[np.float32]:
    drawn = 3.0 * np.random.default_rng(seed).standard_normal((200, 2))
    return np.concatenate((drawn, [[0.0, 1.0], [-1.0, 1e30]])).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("mode", ["clip", "rescale"])
@pytest.mark.parametrize("name", SPACES)
def test_the_environment_gets_elements_of_its_space(name: str, mode: str, scale: float) -> None:
    space, recorded = SPACES[name], samples()
    if mode == "rescale" and "open" in name:
        with pytest.raises(ValueError, match=r"rescale needs bounds.* use clip"):
            spec_for(space, mode, scale)
        return
    spec, before = spec_for(space, mode, scale), recorded.copy()
    given = to_env_actions(spec, recorded)
    assert given.dtype == space.dtype
    assert all(space.contains(action) for action in given)
    expected = scale * recorded.astype(np.float64)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if mode == "rescale":
        expected = low + (expected + 1.0) * (high - low) / 2.0
    precise = 1e-3 if space.dtype == np.float16 else 1e-6
    np.testing.assert_allclose(given, np.clip(expected, low, high), rtol=precise, atol=precise)
    inside = ~at_bounds(spec, given).any(axis=1)
    again = from_env_actions(spec, given[inside])
    assert again.dtype == np.float32
    np.testing.assert_allclose(
        again,
        recorded[inside],
        rtol=2e-2 if precise > 1e-6 else 1e-5,
        atol=1e-2 if precise > 1e-6 else 1e-5,
    )
    given *= 0  # as an environment may that writes into its actions
    np.testing.assert_array_equal(recorded, before)


def test_without_bounds_actions_are_sent_as_they_are() -> None:
    for spec in (spec_for(ASYMMETRIC, "none"), replace(spec_for(ASYMMETRIC), action_bounds=None)):
        given = to_env_actions(spec, samples())
        np.testing.assert_array_equal(given, samples())
        assert given.dtype == np.float32
        assert not at_bounds(spec, given).any()


def test_vectors_of_integers_are_refused() -> None:
    space: Any = Box(0, 3, (2,), np.int64)
    with pytest.raises(ValueError, match=r"a Box of real numbers.*round in the environment"):
        spec_for(space)


def test_several_choices_are_refused_and_one_has_no_bounds() -> None:
    with pytest.raises(ValueError, match=r"several choices to one Discrete"):
        spec_for(MultiDiscrete([3, 3]))
    assert spec_for(Discrete(3), "clip").action_bounds is None


def test_the_tasks_decide_unless_the_settings_do() -> None:
    space, settings = SPACES["wide"], PolicySettings()
    for asked in ("clip", "rescale", "none"):
        spec = PolicySpec.from_spaces(settings, OBSERVATIONS, space, asked)
        assert spec.action_bounds is not None
        assert spec.action_bounds.mode == asked
        own = PolicySettings(action_bounds="clip")
        spec = PolicySpec.from_spaces(own, OBSERVATIONS, space, asked)
        assert spec.action_bounds == spec_for(space, "clip").action_bounds
    with pytest.raises(ValueError, match="'cut' is not known: write clip, rescale or none"):
        PolicySpec.from_spaces(settings, OBSERVATIONS, space, "cut")


@pytest.mark.parametrize("name", SPACES)
def test_bounds_are_saved_as_json(name: str) -> None:
    spec = spec_for(SPACES[name])
    text = json.dumps(asdict(spec), allow_nan=False)
    assert PolicySpec.from_json(json.loads(text)) == spec
    old = json.loads(text)
    del old["action_bounds"]
    assert PolicySpec.from_json(old).action_bounds is None


@pytest.mark.parametrize(
    "change",
    [{"mode": "cut"}, {"low": [0.0]}, {"high": [1.0, float("nan")]}, {"dtype": "int64"}, {"x": 1}],
)
def test_damaged_bounds_are_refused(change: dict[str, Any]) -> None:
    data = asdict(spec_for(ASYMMETRIC))
    data["action_bounds"] |= change
    with pytest.raises((TypeError, ValueError)):
        PolicySpec.from_json(data)


def test_a_warning_says_how_much_lies_outside_and_what_to_set() -> None:
    assert bounds_warning(spec_for(SPACES["symmetric"])) is None  # 32% are usual
    assert bounds_warning(spec_for(SPACES["open"])) is None
    assert bounds_warning(spec_for(ASYMMETRIC, "rescale")) is None
    assert bounds_warning(spec_for(Discrete(3))) is None
    share = norm.cdf(5.0) + norm.sf(10.0)
    message = bounds_warning(spec_for(ASYMMETRIC))
    assert message is not None
    assert message.startswith(f"{share:.0%} of what the untrained policy samples for action 2 of 2")
    assert "[5, 10], and is clipped: policy.action_bounds=rescale" in message
    sent = bounds_warning(spec_for(ASYMMETRIC, "none"))
    assert sent is not None
    assert "is sent unclipped: policy.action_bounds=clip or rescale" in sent


class Strict(gym.Env[NDArray[np.float32], NDArray[Any]]):
    """Refuses an action outside its space, remembers those it got, and overwrites them."""

    observation_space = OBSERVATIONS

    def __init__(self, space: Box) -> None:
        self.action_space, self.got = space, list[NDArray[Any]]()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action: NDArray[Any]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.got.append(action.copy())
        action *= 0
        return np.zeros(3, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("name", ["symmetric", "asymmetric", "not in binary", "half precision"])
def test_log_probs_and_data_are_of_the_actions_as_sampled(name: str) -> None:
    env, spec = Strict(SPACES[name]), spec_for(SPACES[name], "rescale" if "a" in name else "clip")
    policy = NumpyPolicy(spec, initial_parameters(spec, np.random.default_rng(0)))
    batch = gym.vector.SyncVectorEnv([lambda: env])
    found = collect(policy, batch, 20, np.random.SeedSequence(1))
    recorded = found.actions[0]
    assert (np.abs(recorded) > 1.0).any()
    np.testing.assert_array_equal(to_env_actions(spec, recorded), np.array(env.got))
    mean = policy.forward(found.observations[0])
    expected = norm.logpdf(recorded, mean, policy.std).sum(axis=1)
    np.testing.assert_allclose(found.log_probs[0], expected, rtol=1e-4, atol=1e-4)
