"""The routes over real HTTP, without Ray: responses, errors, the token, exported policies."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gymnasium as gym
import numpy as np
import orjson
import pytest
import requests
import schemathesis
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings

import maml_ray
from maml_ray.evaluation.agent import Agent
from maml_ray.serving.http.act_body import MAX_OBSERVATIONS
from tests.docs.pages import python_block
from tests.evaluation.test_support import context_agent
from tests.serving.bodies import body_of
from tests.serving.local_service import backend_of, served, store_of
from tests.small_runs import agent_of, settings

TOKEN = "correct horse battery staple"
LIMIT = 200_000


@pytest.fixture(scope="module")
def agent() -> Agent:
    return agent_of(settings("half-cheetah-direction", policy={"action_scale": 1.0}))


@pytest.fixture(scope="module")
def url(agent: Agent) -> Iterator[str]:
    with served(backend_of(agent), max_body_bytes=LIMIT) as found:
        yield found


JSON = {"Content-Type": "application/json"}


def post(
    url: str, path: str, body: Any, headers: Mapping[str, str] | None = None
) -> requests.Response:
    content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return send(url + path, content, headers)


def send(url: str, content: Any, headers: Mapping[str, str] | None = None) -> requests.Response:
    return requests.post(url, data=content, headers={**JSON, **(headers or {})}, timeout=30)


def observations(count: int) -> Any:
    return np.random.default_rng(0).standard_normal((count, 17)).astype(np.float32)


def test_actions_cross_http_to_the_bit(url: str, agent: Agent) -> None:
    seen = observations(3)
    answer = post(url, "/act", {"observations": seen}).json()
    assert answer["policy"] == "checkpoint-1"
    np.testing.assert_array_equal(np.float32(answer["actions"]), agent.act(seen))
    one = post(url, "/act", {"observations": seen[1]}).json()
    np.testing.assert_array_equal(np.float32(one["actions"]), agent.act(seen[1]))
    assert "log_probs" not in one
    body = {"observations": seen[1], "explore": True, "seed": 3}
    sampled = post(url, "/act", body).json()
    expected = agent.act(seen[1], explore=True, rng=np.random.default_rng(3))
    np.testing.assert_array_equal(np.float32(sampled["actions"]), expected)
    assert isinstance(sampled["log_probs"], float)
    assert np.abs(sampled["samples"]).max() > 1.0  # before they are clipped
    given = agent.to_env_actions(np.array(sampled["samples"], np.float32))
    np.testing.assert_array_equal(given, expected)
    assert post(url, "/act", {**body, "seed": 3.0}).json() == sampled  # JSON has one number type
    other = post(url, "/act", {**body, "seed": None}).json()
    assert other["actions"] != sampled["actions"]


def test_a_robots_own_loop_collect_adapt_act(url: str, agent: Agent) -> None:
    """Sample with /act, adapt with /adapt and the log-probabilities, then act again."""
    seen = np.random.default_rng(1).standard_normal((2, 4, 17)).astype(np.float32)
    acted = post(url, "/act", {"observations": seen.reshape(8, 17), "explore": True}).json()
    rewards = np.random.default_rng(2).standard_normal((2, 4)).astype(np.float32)
    support = maml_ray.Trajectories(
        seen,
        np.float32(acted["samples"]).reshape(2, 4, 6),
        np.float32(acted["log_probs"]).reshape(2, 4),
        rewards,
        np.ones((2, 4), np.bool_),
    )
    body = {name: value for name, value in body_of(agent, support).items() if value is not None}
    answer = post(url, "/adapt", {"policy": acted["policy"], "trajectories": body})
    assert answer.status_code == 200, answer.text
    adapted = answer.json()
    expected = agent.adapt(support)
    again = post(url, "/act", {"observations": seen[0], "policy": adapted["policy"]}).json()
    assert again["policy"] == adapted["policy"]
    np.testing.assert_array_equal(np.float32(again["actions"]), expected.act(seen[0]))
    assert adapted["adapted_from"] == "checkpoint-1"
    assert adapted["steps"][0]["support_return"] == pytest.approx(rewards.sum(1).mean())
    further = post(url, "/adapt", {"policy": adapted["policy"], "task": {"direction": -1}}).json()
    assert further["adapted_from"] == adapted["policy"]
    assert further["task"] == {"direction": -1.0}
    assert isinstance(further["return_after"], float)


@pytest.mark.parametrize("make_agent", [lambda: agent_of(settings()), context_agent])
def test_the_documented_client_adapts_to_an_environment_of_its_own(
    make_agent: Callable[[], Agent],
) -> None:
    """One request is one step on its episodes, which end early and are padded."""
    names: dict[str, Any] = {}
    exec(python_block("serving.md", "collect_episode"), names)
    sent: dict[str, Any] = {}
    agent, unrecorded = make_agent(), names["post"]

    def recorded(path: str, body: Any) -> Any:
        sent[path] = body
        return unrecorded(path, body)

    names["post"] = recorded
    env: Any = gym.make("maml_ray/PointNavigation-v0", max_episode_steps=8)
    with served(backend_of(agent)) as names["SERVICE"]:
        policy = names["adapt"](env, episodes=4, steps=10)
        answer = recorded("/act", {"policy": policy, "observations": [0.1, 0.2]})
    own = sent["/adapt"]["trajectories"]
    arrays: dict[str, Any] = {name: np.float32(values) for name, values in own.items()}
    mask = arrays.pop("mask").astype(bool)
    assert mask.sum(axis=1).tolist() == [8, 8, 8, 8]
    assert ("context_offsets" in arrays) == (agent.context_size is not None)
    arrays["actions"] = arrays.pop("samples")
    expected = agent.adapt(maml_ray.Trajectories(mask=mask, **arrays))
    np.testing.assert_allclose(
        answer["actions"], expected.act(np.array([0.1, 0.2])), rtol=1e-3, atol=1e-5
    )


def test_support_policies_act_in_the_episodes_of_a_context(tmp_path: Path) -> None:
    agent, seen = context_agent(), np.array([[0.4, -0.2], [0.1, 0.0]], np.float32)
    store = store_of(agent)
    with served(backend_of(agent, store)) as url:
        adapted = post(url, "/adapt", {"task": {"x": 0.3, "y": -0.1}, "seed": 2}).json()["policy"]
        known = {"base": agent, adapted: agent.adapt({"x": 0.3, "y": -0.1}, seed=2)}
        for name, acting in known.items():
            stored = len(store)
            answer = post(url, "/support", {"policy": name, "episodes": 6}).json()
            assert answer["policy"] == ("checkpoint-1" if name == "base" else name)
            np.testing.assert_array_equal(answer["context_offsets"], agent.context_offsets(6))
            assert answer["expires_in_s"] == pytest.approx(1000.0, abs=60.0)
            assert answer["policies"][:2] == answer["policies"][4:]
            assert len(set(answer["policies"])) == len(store) - stored == 4
            for each, expected in zip(answer["policies"], acting.support_agents(6), strict=True):
                acted = post(url, "/act", {"policy": each, "observations": seen}).json()
                np.testing.assert_array_equal(np.float32(acted["actions"]), expected.act(seen))
        folder = tmp_path / "policy"
        folder.mkdir()
        for path, file in (("", "parameters.safetensors"), ("/policy.json", "policy.json")):
            content = requests.get(f"{url}/policy/{each}{path}", timeout=30).content
            (folder / file).write_bytes(content)
        np.testing.assert_array_equal(maml_ray.load(folder).act(seen), expected.act(seen))
        default = post(url, "/support", {}).json()["policies"]
        assert len(default) == agent.settings.meta_batch.episodes
        few = post(url, "/support", {"episodes": 1})
        assert few.status_code == 422
        assert "episodes: 1 support episode is not enough" in few.json()["error"]


def test_without_a_context_a_policy_acts_in_its_support_episodes_itself(url: str) -> None:
    assert post(url, "/support", {"episodes": 2}).json() == {
        "policy": "checkpoint-1",
        "policies": ["checkpoint-1"] * 2,
        "context_offsets": None,
        "expires_in_s": None,
    }


def test_openapi_has_context_offsets_for_policies_with_a_context(url: str) -> None:
    def trajectories(service: str) -> Any:
        paths = requests.get(service + "/openapi.json", timeout=30).json()["paths"]
        body = paths["/adapt"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        return body["properties"]["trajectories"]["anyOf"][0]

    assert "context_offsets" not in trajectories(url)["properties"]
    with served(backend_of(context_agent())) as other:
        schema = trajectories(other)
    assert "context_offsets" in schema["required"]
    row = schema["properties"]["context_offsets"]["items"]
    assert (row["minItems"], row["maxItems"]) == (2, 2)


def test_a_downloaded_policy_is_read_by_maml_ray_and_by_plain_torch(
    url: str, agent: Agent, tmp_path: Path
) -> None:
    name = post(url, "/adapt", {"task": {"direction": -1}, "seed": 4}).json()["policy"]
    for path, file in (("", "parameters.safetensors"), ("/policy.json", "policy.json")):
        answer = requests.get(f"{url}/policy/{name}{path}", timeout=30)
        assert answer.status_code == 200
        (tmp_path / file).write_bytes(answer.content)
    loaded = maml_ray.load(tmp_path)
    seen = observations(5)
    acted = post(url, "/act", {"observations": seen, "policy": name}).json()
    np.testing.assert_array_equal(np.float32(acted["actions"]), loaded.act(seen))
    assert loaded.adaptation_steps == 1
    names: dict[str, Any] = {}
    exec(python_block("evaluation.md", "safetensors.torch"), names)
    theirs = names["load_with_pytorch"](tmp_path)(torch.from_numpy(seen)).numpy()
    np.testing.assert_allclose(theirs, np.float32(acted["actions"]), rtol=1e-5, atol=1e-6)


OBSERVATION = [0.0] * 17


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/act", {"observations": [0.0] * 16}, 422, ["observations", "(n, 17)", "(16,)"]),
        ("/act", {"observations": [[OBSERVATION]]}, 422, ["observations", "(n, 17)"]),
        ("/act", {"observations": [1e39] * 17}, 422, ["observations", "finite"]),
        ("/act", {"observations": ["1"] * 17}, 422, ["observations", "numbers"]),
        ("/act", {}, 422, ["observations is missing"]),
        ("/act", [], 422, ["JSON object"]),
        ("/act", {"observations": OBSERVATION, "polcy": "x"}, 422, ["polcy", "'policy'"]),
        ("/act", {"observations": OBSERVATION, "policy": "x"}, 404, ["'x'", "/adapt"]),
        ("/act", {"observations": OBSERVATION, "policy": 3}, 422, ["policy = 3"]),
        ("/act", {"observations": OBSERVATION, "seed": -1}, 422, ["seed = -1"]),
        ("/act", {"observations": OBSERVATION, "explore": 1}, 422, ["explore = 1"]),
        ("/act", {"observations": OBSERVATION, "seed": 0.5}, 422, ["seed = 0.5"]),
        ("/act", {"observations": OBSERVATION, "seed": True}, 422, ["seed = True"]),
        ("/adapt", {}, 422, ["a task, or trajectories"]),
        ("/adapt", {"task": {"direction": 2}}, 422, ["no such task"]),
        ("/adapt", {"task": {"direction": "left"}}, 422, ["no such task", '{"direction": 1}']),
        ("/adapt", {"task": {"direction": [1]}}, 422, ["task.direction", "or a text"]),
        ("/adapt", {"task": {"direction": 1e31}}, 422, ["task.direction", "at most 1e+30"]),
        ("/adapt", {"task": {"direction": 1}, "steps": 0}, 422, ["steps = 0"]),
        ("/adapt", {"task": {"direction": 1}, "policy": "x"}, 404, ["'x'"]),
        ("/adapt", {"trajectories": {"reward": []}}, 422, ["trajectories."]),
        ("/adapt", {"trajectories": {}, "task": None}, 422, ["trajectories.observations"]),
        ("/support", {"episodes": 0}, 422, ["episodes = 0"]),
        ("/support", {"episodes": 1001}, 422, ["episodes = 1001"]),
        ("/support", {"policy": "x"}, 404, ["'x'"]),
        ("/support", {"episode": 3}, 422, ["episode", "'episodes'"]),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_field(
    url: str, path: str, body: Any, status: int, words: list[str]
) -> None:
    answer = post(url, path, body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    for word in words:
        assert word in answer.json()["error"]


def test_own_trajectories_take_one_step(url: str) -> None:
    body = {
        "steps": 2,
        "trajectories": {
            "observations": [[OBSERVATION]],
            "actions": [[[0.0] * 6]],
            "rewards": [[1.0]],
        },
    }
    assert "one step" in post(url, "/adapt", body).json()["error"]


def test_too_many_observations_and_too_large_bodies(url: str) -> None:
    few = agent_of(settings())  # two numbers each, so that many fit into a body
    with served(backend_of(few)) as small:
        many = np.zeros((MAX_OBSERVATIONS + 1, 2), np.float32)
        assert "got 4,097" in post(small, "/act", {"observations": many}).json()["error"]
        assert post(small, "/act", {"observations": many[1:]}).status_code == 200
    fits = b'{"observations": ' + json.dumps(OBSERVATION).encode() + b"}"
    exactly = send(url + "/act", fits.ljust(LIMIT))
    assert exactly.status_code == 200
    over = send(url + "/act", fits.ljust(LIMIT + 1))
    assert (over.status_code, over.json()) == (
        413,
        {"error": "the body is larger than 200,000 bytes"},
    )
    chunks = iter([fits.ljust(LIMIT), b" "])  # without Content-Length
    chunked = send(url + "/act", chunks)
    assert chunked.status_code == 413


def test_a_too_large_content_length_is_rejected_before_the_body(url: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.putrequest("POST", "/act")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()  # without a body
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"observations": NaN}', b"[" * 10_000])
def test_invalid_json_is_a_400(url: str, body: bytes) -> None:
    answer = send(url + "/act", body)
    assert answer.status_code == 400
    assert "not JSON" in answer.json()["error"]


def test_unknown_paths_and_methods(url: str) -> None:
    assert requests.get(url + "/nowhere", timeout=30).status_code == 404
    wrong = requests.get(url + "/act", timeout=30)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert set(wrong.json()) == {"error"}
    assert requests.get(url + "/policy/nobody", timeout=30).status_code == 404


def test_the_token_is_required_except_on_open_paths(agent: Agent) -> None:
    digest = hashlib.sha256(TOKEN.encode()).digest()
    with served(backend_of(agent), token_digest=digest) as url:
        body = {"observations": OBSERVATION}
        for headers in (
            {},
            {"Authorization": TOKEN},
            {"Authorization": "Bearer "},
            {"Authorization": f"Bearer {TOKEN[:-1]}"},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Basic {TOKEN}"},
        ):
            for answer in (
                post(url, "/act", body, headers=headers),
                post(url, "/adapt", {}, headers=headers),
                requests.get(url + "/policy/base", headers=headers, timeout=30),
                requests.get(url + "/nowhere", headers=headers, timeout=30),
            ):
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert TOKEN not in answer.text
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert post(url, "/act", body, headers=right).status_code == 200
        assert requests.get(url + "/policy/base", headers=right, timeout=30).status_code == 200
        for path in ("/healthz", "/docs", "/openapi.json"):
            assert requests.get(url + path, timeout=30).status_code == 200
        schema = requests.get(url + "/openapi.json", timeout=30).json()
        assert schema["paths"]["/act"]["post"]["security"] == [{"token": []}]
        assert "security" not in schema["paths"]["/healthz"]["get"]


def test_an_internal_error_is_a_500_without_traceback(agent: Agent) -> None:
    async def broken(content: bytes | bytearray) -> Any:
        raise RuntimeError("a secret")

    backend = replace(backend_of(agent), adapt=broken)
    with served(backend) as url:
        answer = post(url, "/adapt", {"task": {"direction": 1}})
        assert (answer.status_code, answer.json()) == (
            500,
            {"error": "the service failed: see its log"},
        )
        assert post(url, "/act", {"observations": OBSERVATION}).status_code == 200


def test_a_policy_beyond_the_maximum_is_a_404(agent: Agent) -> None:
    with served(backend_of(agent, store_of(agent, max_policies=1))) as url:
        body = {"task": {"direction": 1}, "measured_episodes": 0}
        first, second = (post(url, "/adapt", body).json()["policy"] for _ in range(2))
        gone = requests.get(f"{url}/policy/{first}", timeout=30)
        assert gone.status_code == 404
        assert "has expired" in gone.json()["error"]
        assert requests.get(f"{url}/policy/{second}", timeout=30).status_code == 200


def test_what_one_replica_adapts_another_acts_with(agent: Agent) -> None:
    store = store_of(agent)
    with served(backend_of(agent, store)) as one, served(backend_of(agent, store)) as other:
        name = post(one, "/adapt", {"task": {"direction": 1}}).json()["policy"]
        body = {"observations": OBSERVATION, "policy": name}
        assert post(other, "/act", body).json() == post(one, "/act", body).json()


def test_the_examples_of_the_documentation_work(url: str) -> None:
    paths = requests.get(url + "/openapi.json", timeout=30).json()["paths"]
    for path in ("/act", "/adapt", "/support"):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        answer = post(url, path, content["example"])
        assert answer.status_code == 200, answer.text
    health = requests.get(url + "/healthz", timeout=30).json()
    assert health == {
        "status": "ok",
        "policy": "checkpoint-1",
        "task": "half-cheetah-direction",
        "warnings": [],
    }


def test_every_generated_request_gets_a_documented_response(
    agent: Agent,
) -> None:
    """Schemathesis generates hundreds of valid and invalid requests from OpenAPI."""
    with served(backend_of(agent), max_body_bytes=100_000_000) as url:
        _check_against_schema(url)


def _check_against_schema(url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    results: Any = schema.get_all_operations()
    operations = [result.ok() for result in results]
    assert len(operations) == 7
    seen: dict[str, set[int]] = {operation.label: set() for operation in operations}
    for operation in operations:
        for mode in schemathesis.GenerationMode:
            if operation.method == "post" or mode == schemathesis.GenerationMode.POSITIVE:
                # A request with only a path has no invalid variant.
                strategy = operation.as_strategy(generation_mode=mode)
                right = operation.path == "/act" and mode == schemathesis.GenerationMode.POSITIVE
                _send_generated_requests(strategy, seen[operation.label], is_served=right)
    assert {200, 422} <= seen["POST /act"]
    assert 422 in seen["POST /adapt"]
    assert {404, 422} <= seen["POST /support"]
    assert 404 in seen["GET /policy/{name}"]


def _send_generated_requests(strategy: Any, seen: set[int], *, is_served: bool) -> None:
    # A task or policy name that the schema allows need not exist.
    beyond_a_schema = [schemathesis.checks.positive_data_acceptance]

    @hypothesis_settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def ask(case: Any) -> None:
        answer = case.call_and_validate(excluded_checks=beyond_a_schema, timeout=30)
        seen.add(answer.status_code)
        # As bytes: Hypothesis draws words of this project, too, and a policy's file is no text.
        assert b"Traceback" not in answer.content
        # Except for unknown names, overflowing numbers, a binary body of any length, and parameters
        # of the query, which a schema cannot exclude beside JSON.
        if is_served and case.media_type == "application/json" and not case.query:
            refused = answer.status_code not in (200, 404) and "overflow" not in answer.text
            assert not refused, answer.text[:300]

    ask()
