"""Test the command line in this process: mistakes are one sentence and exit code 2."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import maml_ray
from maml_ray.cli.main import main
from maml_ray.config.loading import load_settings, validate_settings
from tests.small_runs import agent_of, run_of, settings


class Outcome:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["maml-ray", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), captured.out, captured.err)

    return run


def assert_refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (["train", "--set", "outer.epochs"], ["outer.epochs", "key.path=value"]),
        (["train", "--set", "outer.epoch=3"], ["outer.epoch", "did you mean 'outer.epochs'"]),
        (["train", "--set", "outer.epochs=0"], ["outer.epochs", "0", "greater than or equal to 1"]),
        (["train", "--set", "task.name=half-cheetah-backwards"], ["half-cheetah-backward"]),
        (["train", "--set", "task.name=no.such.module:Tasks"], ["no.such.module"]),
        (["train", "--set", "outer.objective=pop"], ["outer.objective = 'pop'", "ppo"]),
        (["check", "--set", "outer.objective=sac"], ["outer.objective = 'sac'", "reinforce"]),
        (["train", "--set", "task.name=json:loads"], ["json:loads", "TaskDistribution"]),
        (["train", "--preset", "notebok"], ["notebok", "did you mean 'notebook'"]),
        (["train", "--resume", "nowhere"], ["nowhere"]),
        (["train", "--resume", "a", "--run-dir", "b"], ["--run-dir"]),
        (["train", "--resume", "a", "--preset", "notebook"], ["--preset"]),
        (["evaluate", "nowhere"], ["nowhere"]),
        (["evaluate", "."], ["is not a run directory"]),
        (["report", "nowhere"], ["nowhere"]),
        (["check", "--set", "run.seed=-1"], ["run.seed", "-1"]),
        (["evaluate", "x", "--episodes", "0"], ["--episodes"]),
        (["evaluate", "x", "--adaptation-episodes", "0"], ["--adaptation-episodes"]),
        (["evaluate", "x", "--steps", "1..3"], ["--steps 1..3", "0..3"]),
        (["evaluate", "x", "--steps", "-1"], ["--steps -1"]),
        (["evaluate", "x", "--steps", "1000"], ["up to 100"]),
        (["evaluate", "x", "--inner-rate", "0"], ["--inner-rate"]),
        (["evaluate", "x", "--inner-rate", "nan"], ["--inner-rate"]),
        (["evaluate"], ["a run directory", "--follow"]),
        (["evaluate", "x", "--follow", "y"], ["--follow cannot be combined with RUN"]),
        (["evaluate", "--follow", "y", "--every", "0"], ["--every"]),
        (["evaluate", "x", "--every", "3"], ["--every", "--follow"]),
        (["evaluate", "x", "--address", "auto"], ["--address", "--follow"]),
        (["evaluate", "x", "--output", "y"], ["--output", "--follow"]),
        (["status", "--address", "nonsense"], ["nonsense", "host:port"]),
        (["adapt", "x"], ["--task"]),
        (["adapt", "x", "--task", "{direction: 1}"], ["cannot be read", "write JSON"]),
        (["adapt", "x", "--task", "[1]"], ["not an object of numbers"]),
        (["adapt", "x", "--task", '{"a": [1]}'], ["not an object of numbers"]),
        (["adapt", "x", "--task", '{"a": null}'], ["not an object of numbers and text"]),
        (["adapt", "x", "--task", "1" * 5000], ["--task 111"]),
        (["adapt", "x", "--task", '{"a": 1}'], ["no run directory x"]),
        (["compare"], ["RUN"]),
        (["compare", "nowhere"], ["no run directory nowhere"]),
        (["submit"], ["run.directory = 'runs'", "--set run.directory"]),
        (["submit", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (["submit", "--set", "outer.epoch=3"], ["outer.epoch", "did you mean 'outer.epochs'"]),
        (["submit", "--set", "run.storage=nope://bucket"], ["nope://bucket"]),
        (["doctor", "--set", "run.seed=-1"], ["run.seed", "-1"]),
        (["doctor", "--deadline-s", "0"], ["--deadline-s"]),
        (["doctor", "--working-dir", "nowhere"], ["nowhere is not a folder"]),
        (["doctor", "--address", "nonsense"], ["cluster.address = 'nonsense'", "host:port"]),
        (["train", "--no-such-option"], ["--no-such-option"]),
        (["no-such-command"], ["no-such-command"]),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(  # type: ignore[no-untyped-def]
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(cli(*arguments), *words)
    assert not list(tmp_path.iterdir()), "a refused command must leave nothing behind"


def test_a_missing_cluster_has_its_own_exit_code(  # type: ignore[no-untyped-def]
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")  # restored afterwards
    monkeypatch.setattr("maml_ray.runtime.connection.address.CONNECT_TIMEOUT_S", 1.0)
    arguments = ["--address", "http://127.0.0.1:1", "--set", f"run.directory={tmp_path}"]
    for command in (["submit"], ["submit", "--resume"], ["doctor"]):
        outcome = cli(*command, *arguments)
        assert outcome.code == 4, outcome.err
        assert "no job server answers" in outcome.err
        assert "Traceback" not in outcome.err
    followed = cli("evaluate", "--follow", "y", "--address", "127.0.0.1:1")
    assert (followed.code, followed.out) == (4, "")
    assert "no Ray cluster answers" in followed.err
    assert not list(tmp_path.iterdir())


def test_a_custom_task_is_not_submitted_without_its_module(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    own = "task.name=tests.runtime.test_rollout_pool:FlawedTasks"
    outcome = cli("submit", "--set", own, "--set", f"run.directory={tmp_path}")
    assert_refused(outcome, "--working-dir")


def test_adapt_and_compare_from_the_command_line(  # type: ignore[no-untyped-def]
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = run_of(settings(), tmp_path / "run")
    (task,) = agent_of(settings()).sample_tasks(1)
    adapted = cli("adapt", "run", "--task", json.dumps(dict(task.parameters)))
    assert adapted.code == 0, adapted.err
    assert "before" in adapted.out
    assert "after 1 step" in adapted.out
    (folder,) = (run.path / "adapted").iterdir()
    again = cli("adapt", "run", "--task", json.dumps(dict(task.parameters)))
    assert_refused(again, "already exists", "--output")
    assert_refused(cli("adapt", "run", "--task", '{"x": 1, "z": 2}'), "no such task")
    assert_refused(cli("adapt", "run", "--task", '{"x": NaN, "y": 0}'), "a finite number")
    assert_refused(cli("evaluate", str(folder)), "is not a run directory")
    assert_refused(cli("compare", "run"), "has not finished an iteration")
    assert not (tmp_path / "comparison").exists()


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "evaluate",
        "adapt",
        "compare",
        "report",
        "status",
        "serve",
        "check",
        "version",
        "submit",
        "doctor",
        "init",
        "explain",
        "presets",
        "tasks",
    ],
)
def test_every_command_has_a_help_page_with_examples(cli, command: str) -> None:  # type: ignore[no-untyped-def]
    outcome = cli(command, "--help")
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) > 8 or command == "version"
    if command != "version":
        assert f"maml-ray {command}" in outcome.out


def test_check_prints_settings_that_load_to_themselves(cli, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    outcome = cli("check", "--set", "outer.epochs=3", "--set", "cluster.rollout_actors=5")
    assert outcome.code == 0
    file = tmp_path / "again.yaml"
    file.write_text(outcome.out)
    assert load_settings(file) == validate_settings(
        {"outer": {"epochs": 3}, "cluster": {"rollout_actors": 5}}
    )
    assert "rollout actors: 5" in outcome.out
    assert re.search(r"an iteration: .* = [\d,]+ env steps", outcome.out)


def test_check_prints_what_happens_beside_its_output(  # type: ignore[no-untyped-def]
    cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maml_ray.kernels.jit._CACHE_DIR", None)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    outcome = cli("check")
    assert "loading the tasks" in outcome.err
    assert "warning: every process compiles its kernels" in outcome.err
    assert validate_settings(yaml.safe_load(outcome.out)) == load_settings()


def test_check_tries_the_tasks(cli) -> None:  # type: ignore[no-untyped-def]
    pendulum = ("--set", "task.env=Pendulum-v1", "--set", "task.ranges={g: [5, 15]}")
    outcome = cli("check", *pendulum)
    assert outcome.code == 0
    assert "# tasks: 20 different tasks in a sample of 20, such as 'g " in outcome.out
    assert "# tasks: Gymnasium's check_env: observations" in outcome.out


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (["task.env=Pendulm-v1"], ["task.env = 'Pendulm-v1'", "did you mean 'Pendulum-v1'"]),
        (
            ["task.name=tests.tasks.test_task_observation:Grid"],  # a family's code may wrap
            ["observations must be a Box", "gymnasium.wrappers"],
        ),
        (["task.name=python:MyTasks"], ["were given in Python", "tasks=MyTasks"]),
    ],
)
def test_check_refuses_tasks_that_training_would_fail_at(cli, tasks: list[str], words) -> None:  # type: ignore[no-untyped-def]
    outcome = cli("check", *(word for change in tasks for word in ("--set", change)))
    assert_refused(outcome, *words)
    assert outcome.out == ""


def test_version_names_the_packages(cli) -> None:  # type: ignore[no-untyped-def]
    outcome = cli("version")
    assert outcome.code == 0
    for name in ("maml-ray", "torch", "ray", "mujoco", "python"):
        assert re.search(rf"^{name} +\d", outcome.out, re.MULTILINE)
    option = cli("--version")
    assert (option.code, option.out) == (0, f"maml-ray {maml_ray.__version__}\n")


def test_the_shipped_deploy_yaml_is_the_defaults_and_names_every_key() -> None:
    path = Path(__file__).parents[2] / "deploy.yaml"
    assert load_settings(path) == validate_settings({})
    written = yaml.safe_load(path.read_text())
    for section, values in validate_settings({}).model_dump().items():
        assert set(written[section]) == set(values), section


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["run", "outer", "policy", "x"]), JUNK, max_size=3))
def test_any_file_is_either_settings_or_one_sentence(tmp_path_factory, data) -> None:  # type: ignore[no-untyped-def]
    from maml_ray.config.settings import SettingsError

    path = tmp_path_factory.mktemp("fuzz") / "deploy.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    try:
        load_settings(path)
        message = ""
    except SettingsError as error:
        message = str(error)
    assert "\n" not in message


def test_an_unknown_storage_protocol_is_rejected_before_training(  # type: ignore[no-untyped-def]
    cli, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    outcome = cli("train", "--run-dir", str(run_dir), "--set", "run.storage=nope://bucket")
    assert_refused(outcome, "nope://bucket", "Protocol not known")
    assert not run_dir.exists()
