"""Walkers and hoppers with other dynamics, against Gymnasium's and the model's arrays."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.envs.mujoco import MujocoEnv

from maml_ray.envs.model_randomizer import ModelRandomizer
from maml_ray.tasks.families.random_dynamics import (
    HopperRandomDynamics,
    HopperRandomDynamicsTasks,
    HopperRandomDynamicsVector,
    RandomDynamicsTasks,
    Walker2dRandomDynamics,
    Walker2dRandomDynamicsTasks,
)

PLAIN = {Walker2dRandomDynamics: "Walker2d-v5", HopperRandomDynamics: "Hopper-v5"}
both_animals = pytest.mark.parametrize("single", PLAIN, ids=lambda single: single.__name__)
both_families = pytest.mark.parametrize(
    "tasks", [Walker2dRandomDynamicsTasks(), HopperRandomDynamicsTasks()], ids=["walker", "hopper"]
)


def model_of(env: Any) -> Any:
    """The simulation's model, behind however many wrappers."""
    assert isinstance(env.unwrapped, MujocoEnv)
    return env.unwrapped.model


def arrays(model: Any) -> dict[str, Any]:
    """Every number of a model."""
    names = (name for name in dir(model) if not name.startswith("_"))
    values = {name: getattr(model, name) for name in names}
    numbers = {
        name: value.copy() for name, value in values.items() if isinstance(value, np.ndarray)
    }
    numbers["meaninertia"] = np.array(model.stat.meaninertia)
    return numbers


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {key for key in before if not np.array_equal(before[key], after[key], equal_nan=True)}


@both_animals
@pytest.mark.parametrize("dynamics", [{}, {"mass/torso": 2.0, "friction/foot_geom/slide": 0.5}])
def test_it_is_gymnasiums_animal(single: Any, dynamics: dict[str, float]) -> None:
    """Observation, reward and end; with other dynamics, of a model changed the same way."""
    env, plain = single(dynamics=dynamics), gym.make(PLAIN[single]).unwrapped
    model = model_of(plain)
    if dynamics:
        model.body("torso").mass *= 2.0
        model.geom("foot_geom").friction[0] *= 0.5
        mujoco.mj_setConst(model, mujoco.MjData(model))
    np.testing.assert_array_equal(env.reset(seed=5)[0], plain.reset(seed=5)[0])
    ends = 0
    rng = np.random.default_rng(0)
    for step in range(200):
        action = rng.standard_normal(model.nu).astype(np.float32)
        mine, theirs = env.step(action), plain.step(action)
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[2] == theirs[2]
        for name in ("x_position", "x_velocity"):
            assert mine[4][name] == theirs[4][name]
        assert mine[4]["reward_survive"] == 1.0
        assert mine[4]["speed"] == theirs[4]["x_velocity"] == mine[4]["reward_run"]
        cost = 1e-3 * np.sum(action.astype(np.float64) ** 2)
        assert mine[1] == pytest.approx(mine[4]["speed"] + 1.0 - cost, abs=1e-6)
        if not mine[2]:
            assert mine[1] == theirs[1]
        else:
            ends += 1
            np.testing.assert_array_equal(env.reset(seed=step)[0], plain.reset(seed=step)[0])
    assert ends > 0
    env.close()
    plain.close()


@both_families
def test_a_task_is_the_models_numbers_multiplied(tasks: RandomDynamicsTasks) -> None:
    task, other = tasks.sample(np.random.default_rng(0), 2)
    original: Any = model_of(gym.make(PLAIN[tasks.vector.single]))  # type: ignore[index]
    model = model_of(tasks.make_env(task, horizon=5))
    for name, multiplier in task.parameters:
        kind, owner, *axis = name.split("/")
        if kind == "mass":
            mine, theirs = model.body(owner).mass[0], original.body(owner).mass[0]
        elif kind == "inertia":
            i = "xyz".index(axis[0])
            mine, theirs = model.body(owner).inertia[i], original.body(owner).inertia[i]
        elif kind == "damping":
            mine, theirs = model.joint(owner).damping[0], original.joint(owner).damping[0]
        else:
            i = ("slide", "spin", "roll").index(axis[0])
            mine, theirs = model.geom(owner).friction[i], original.geom(owner).friction[i]
        assert theirs > 0.0
        assert mine == theirs * multiplier
    assert changed(arrays(model), arrays(model_of(tasks.make_env(other, horizon=5)))) >= {
        "body_mass",
        "body_inertia",
        "dof_damping",
        "geom_friction",
        "body_invweight0",
        "dof_invweight0",
    }


@both_families
def test_applying_starts_from_the_original_whatever_was_applied_before(
    tasks: RandomDynamicsTasks,
) -> None:
    task, other = (dict(task.parameters) for task in tasks.sample(np.random.default_rng(0), 2))
    single: Any = tasks.vector.single
    model = single().model
    original = arrays(model)
    dynamics = ModelRandomizer(model)
    dynamics.apply(task)
    once = arrays(model)
    assert changed(original, once)
    dynamics.apply(task)
    assert changed(once, arrays(model)) == set()
    dynamics.apply(other)
    dynamics.apply(task)
    assert changed(once, arrays(model)) == set()
    with pytest.raises(ValueError, match="above zero"):
        dynamics.apply({"mass/torso": -1.0})
    assert changed(once, arrays(model)) == set()
    dynamics.apply({})
    assert changed(original, arrays(model)) == set()


@both_families
def test_the_names_are_every_number_that_is_not_zero(tasks: RandomDynamicsTasks) -> None:
    single: Any = tasks.vector.single
    model = single().model
    bodies, joints, geoms = model.nbody - 1, model.nu, model.ngeom
    (task,) = tasks.sample(np.random.default_rng(0), 1)
    assert len(task.parameters) == bodies + 3 * bodies + joints + 3 * geoms
    kinds = [name.split("/")[0] for name, _ in task.parameters]
    assert kinds == sorted(kinds, key=["mass", "inertia", "damping", "friction"].index)


def test_multipliers_are_as_the_paper_draws_them() -> None:
    tasks = HopperRandomDynamicsTasks(log_scale_limit=2.0).sample(np.random.default_rng(0), 300)
    for name, base in (("mass/leg", 1.5), ("damping/leg_joint", 1.3)):
        exponents = np.log([dict(task.parameters)[name] for task in tasks]) / np.log(base)
        assert -2.0 <= exponents.min() < -1.9
        assert 1.9 < exponents.max() <= 2.0
        assert abs(exponents.mean()) < 0.2  # three standard errors
        assert abs(exponents.std() - 4.0 / np.sqrt(12.0)) < 0.1
    names = [name for name, _ in tasks[0].parameters]
    assert len({dict(tasks[0].parameters)[name] for name in names}) == len(names)


def test_a_task_of_a_few_multipliers() -> None:
    tasks = HopperRandomDynamicsTasks()
    task = tasks.task({"mass/torso": 2})
    assert task.name == "mass/torso 2"
    assert dict(task.parameters)["mass/torso"] == 2.0
    assert {value for name, value in task.parameters if name != "mass/torso"} == {1.0}
    assert tasks.task({}).name == "original dynamics"
    drawn = tasks.sample(np.random.default_rng(0), 2)
    assert tasks.task(dict(drawn[0].parameters)) == drawn[0]
    assert drawn[0].name != drawn[1].name
    still = HopperRandomDynamicsTasks(log_scale_limit=0.0).sample(np.random.default_rng(0), 1)
    assert {value for _, value in still[0].parameters} == {1.0}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mass/torse": 2.0}, "'mass/torse' is not among.*did you mean 'mass/torso'"),
        ({"gravity": 2.0}, r"friction/floor\|torso_geom.*/slide\|spin\|roll"),
        ({"mass/world": 2.0}, "is not among"),
        ({"damping/rootx": 2.0}, "is not among"),
        ({"mass/torso": 0.0}, "mass/torso must be above zero, got 0"),
        ({"mass/torso": float("nan")}, "mass/torso must be a finite number, got nan"),
        ({"mass/torso": "2"}, "mass/torso must be a finite number, got '2'"),
    ],
)
def test_wrong_multipliers_are_refused_everywhere(parameters: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        HopperRandomDynamicsTasks().task(parameters)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        HopperRandomDynamics(dynamics=parameters)
    with pytest.raises(ValueError, match=message):
        HopperRandomDynamicsVector(2, dynamics=parameters)


def test_a_hopper_falls_when_any_coordinate_leaves_its_bounds() -> None:
    batched = HopperRandomDynamicsVector(4)
    batched.reset(seed=0)
    state = batched.state
    state.velocities[0, 5] = 101.0
    state.velocities[1, 0] = np.nan
    state.positions[2, 3] = -101.0
    assert batched.is_healthy(state).tolist() == [False, False, False, True]
    state.positions[3, :2] = 1e6  # these two may be anything
    assert batched.is_healthy(state)[3]
    batched.close()
