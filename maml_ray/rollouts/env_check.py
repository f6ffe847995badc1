"""Check one environment of a task distribution."""

from __future__ import annotations

import traceback
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.utils import env_checker

from maml_ray.config.settings import Settings
from maml_ray.policies.bounds_warning import bounds_warning, shares_beyond_bounds
from maml_ray.policies.spec import PolicySpec
from maml_ray.rollouts.check_findings import CheckStopped, Findings
from maml_ray.rollouts.first_steps import create_extremes, step_env
from maml_ray.tasks.task import Task, TaskDistribution, opened_env


def check_env(
    tasks: TaskDistribution, task: Task, settings: Settings, horizon: int, findings: Findings
) -> PolicySpec:
    """Check one environment; return the policy's sizes for it.

    Raises:
        CheckStopped: there is no policy for its spaces, or Gymnasium's checker makes it fail.
        UserCodeError: it cannot be created, reset, stepped or closed.
    """
    create_extremes(tasks, horizon)
    with opened_env(tasks, task, horizon) as env:
        try:
            spec = PolicySpec.from_spaces(
                settings.policy, env.observation_space, env.action_space, tasks.action_bounds
            )
        except ValueError as error:
            findings.problems.append(str(error))
            raise CheckStopped from None
        step_env(env)
        objection = findings.call("the environment", _gymnasium_objection, env)
    _report_bounds(spec, findings)
    if objection is None:
        findings.passed.append(
            f"Gymnasium's check_env: observations {env.observation_space}, actions "
            f"{env.action_space}"
        )
    else:
        findings.notes.append(
            f"Gymnasium's check_env, on which training does not rely: {objection}"
        )
    return spec


def _report_bounds(spec: PolicySpec, findings: Findings) -> None:
    if (warning := bounds_warning(spec)) is not None:
        findings.notes.append(warning)
    elif spec.action_bounds is not None:
        findings.passed.append(
            f"{max(shares_beyond_bounds(spec)):.0%} of what the untrained policy samples for an "
            f"action lies outside its bounds, with policy.action_bounds = {spec.action_bounds.mode}"
        )


def _gymnasium_objection(env: gym.Env[Any, Any]) -> str | None:
    """Return what Gymnasium's checker objects to; None if nothing.

    It is stricter than training: it wants observations within their bounds, and a generator in
    each wrapper. Whether rollouts are finite and repeatable is checked by doing them.

    Raises:
        Exception: whatever the environment raises.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # recommendations, such as bounds of observations
            env_checker.check_env(env, skip_render_check=True, skip_close_check=True)
    except Exception as error:
        raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
        if Path(raised_in).parent != Path(env_checker.__file__).parent:
            raise
        return " ".join(str(error).split())[:300] or type(error).__name__
    return None
