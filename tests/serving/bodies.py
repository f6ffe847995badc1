"""Convert trajectories to the JSON that a caller sends."""

from __future__ import annotations

from typing import Any

import orjson

from maml_ray.evaluation.agent import Agent
from maml_ray.policies.action_sampler import to_env_actions
from maml_ray.rollouts.trajectories import Trajectories


def _samples(agent: Agent, support: Trajectories) -> Any:
    """Return the actions as the service gives them: integers, or before scale and bounds."""
    return to_env_actions(agent.spec, support.actions) if agent.spec.discrete else support.actions


def body_of(agent: Agent, support: Trajectories) -> dict[str, Any]:
    """Return all fields of ``support``, collected by ``agent``, as JSON."""
    arrays = {
        "observations": support.observations,
        "samples": _samples(agent, support),
        "rewards": support.rewards,
        "mask": support.mask,
        "log_probs": support.log_probs,
        "final_observations": support.final_observations,
        "terminated": support.terminated,
    }
    if support.context_offsets is not None:
        arrays["context_offsets"] = support.context_offsets
    sent: dict[str, Any] = orjson.loads(orjson.dumps(arrays, option=orjson.OPT_SERIALIZE_NUMPY))
    return sent
