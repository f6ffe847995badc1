"""Test ``maml-ray serve``: mistakes are reported in one sentence before Ray starts."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

import maml_ray
from maml_ray.cli.serve import _ready_message
from maml_ray.learning.rollout_worker import policy_spec
from maml_ray.serving.http.access import TOKEN_VARIABLE
from maml_ray.serving.http.act_body import parse_act_json
from maml_ray.serving.http.adapt_body import parse_adapt
from maml_ray.serving.served_policy import load_base_policy
from maml_ray.serving.settings import ServeSettings
from tests.bad_input.command_line import assert_refused, run
from tests.small_runs import run_of, settings

PAGE = Path(maml_ray.__file__).parent / "docs" / "serving.md"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(run_of(settings(), tmp_path / "run").path)


@pytest.fixture(autouse=True)
def no_ray() -> object:
    with mock.patch("ray.init", side_effect=AssertionError("Ray was started")) as started:
        yield started


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ["no run directory", "nowhere"]),
        (["."], ["is not a run directory"]),
        (["RUN", "--checkpoint", "7"], ["no checkpoint 7"]),
        (["RUN", "--checkpoint", "last"], ["newest, best or a number"]),
        (["RUN", "--checkpoint", "best"], ["best"]),
        (["RUN", "--port", "0"], ["--port"]),
        (["RUN", "--replicas", "0"], ["--replicas"]),
        (["RUN", "--replicas", "2"], ["--replicas", "add --ray"]),
        (["RUN", "--address", "auto"], ["--address", "add --ray"]),
        (["RUN", "--adapters", "0"], ["--adapters"]),
        (["RUN", "--set", "max_age_s"], ["--set", "NAME=VALUE"]),
        (["RUN", "--set", "max_age_s="], ["--set", "NAME=VALUE"]),
        (["RUN", "--set", "max_age=60"], ["max_age", "max_age_s"]),
        (["RUN", "--set", "replicas=3"], ["--ray --replicas"]),
        (["RUN", "--set", "checkpoint=3"], ["use --checkpoint"]),
        (["RUN", "--set", "max_age_s=old"], ["max_age_s", "old"]),
        (["RUN", "--host", "no such host"], ["no such host", "--host"]),
        (["RUN", "--host", "192.0.2.1"], ["192.0.2.1", "--host"]),
        (["RUN", "--token-file", "nowhere"], ["token file", "nowhere"]),
        (["nonsense://bucket/run"], ["nonsense"]),
    ],
)
def test_errors_are_reported_before_ray_starts(
    folder: str, arguments: list[str], words: list[str]
) -> None:
    assert_refused(run("serve", *(folder if one == "RUN" else one for one in arguments)), *words)


def test_a_port_that_is_taken(folder: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        outcome = run("serve", folder, "--port", str(port))
    assert_refused(outcome, f"port {port}", "in use", "--port")


def test_an_invalid_token_in_the_environment_is_rejected(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "short")
    assert_refused(run("serve", folder), TOKEN_VARIABLE)


@pytest.mark.parametrize(
    ("module", "options", "extra"),
    [
        ("fastapi", [], "serve"),
        ("orjson", [], "serve"),
        ("uvicorn", [], "serve"),
        ("ray.serve", ["--ray"], "serve-ray"),
    ],
)
def test_a_missing_extra_is_reported_with_the_command_to_install_it(
    folder: str, monkeypatch: pytest.MonkeyPatch, module: str, options: list[str], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert_refused(run("serve", folder, *options), module, f"pip install 'maml-ray[{extra}]'")


def test_one_process_needs_no_ray() -> None:
    code = "import sys, maml_ray.serving.server; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_printed_commands_are_valid(folder: str) -> None:
    from maml_ray.serving.endpoint import Endpoint

    base = load_base_policy(folder)
    endpoint = Endpoint("http://127.0.0.1:8000", None)
    lines = _ready_message(base, folder, endpoint, token_required=True, loopback=True)
    assert """http://127.0.0.1:8000/act -d '{"observations": [0, 0]}'""" in "\n".join(lines)
    assert all("$MAML_RAY_SERVE_TOKEN" in line for line in lines if "curl" in line)
    assert not any("warning" in line for line in lines)
    open_to_all = _ready_message(base, folder, endpoint, token_required=False, loopback=False)
    assert any("--token-file" in line for line in open_to_all)


def test_the_documented_requests_are_valid() -> None:
    text = PAGE.read_text(encoding="utf-8")
    bodies = re.findall(r"localhost:8000/(act|adapt) -d '(.*?)'", text)
    assert [route for route, _ in bodies] == ["act", "adapt", "act"]
    spec = policy_spec(settings("half-cheetah-direction"))
    assert parse_act_json(bodies[0][1].encode(), spec).single
    limits = ServeSettings(run="unused").limits
    assert parse_adapt(bodies[1][1].encode(), limits).task == {"direction": -1.0}
