"""Every setting, option and argument that is a path or URL goes through the same rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import maml_ray
from maml_ray.common.errors import UserError
from maml_ray.config.loading import load_settings, validate_settings
from maml_ray.config.settings import Settings
from maml_ray.runs.train import train
from maml_ray.serving.http.access import load_token_digest
from maml_ray.serving.served_policy import load_base_policy
from maml_ray.serving.settings import parse_serve_settings
from tests.bad_input.command_line import assert_refused, run, training_refused
from tests.small_runs import agent_of, settings

SETTINGS = ("run.directory", "run.storage", "faults.fallback_directory")
OPTIONS: dict[str, list[str]] = {
    "train DEPLOY.YAML": ["train", "{}"],
    "train --run-dir": ["train", "--run-dir", "{}"],
    "train --resume": ["train", "--resume", "{}"],
    "check DEPLOY.YAML": ["check", "{}"],
    "init PATH": ["init", "{}"],
    "submit --working-dir": ["submit", "--working-dir", "{}"],
    "doctor --working-dir": ["doctor", "--working-dir", "{}"],
    "evaluate RUN": ["evaluate", "{}"],
    "evaluate --beside": ["evaluate", "run", "--beside", "run", "--beside", "{}"],
    "evaluate --video": ["evaluate", "run", "--video", "{}"],
    "evaluate --output": ["evaluate", "--follow", "x", "--output", "{}"],
    "adapt RUN": ["adapt", "{}", "--task", "x"],
    "adapt --output": ["adapt", "run", "--task", "x", "--output", "{}"],
    "export RUN": ["export", "{}"],
    "export --output": ["export", "run", "--output", "{}"],
    "compare RUN": ["compare", "run", "{}"],
    "compare --output": ["compare", "run", "--output", "{}"],
    "report RUN": ["report", "{}"],
    "serve RUN": ["serve", "{}"],
    "serve --token-file": ["serve", "run", "--token-file", "{}"],
}
CALLS: dict[str, Callable[[Any], object]] = {
    "train settings": lambda path: train(f"{path}/deploy.yaml"),
    "train run_dir": lambda path: train(settings(), run_dir=path),
    "train resume": lambda path: train(resume=path),
    "load": maml_ray.load,
    "load_settings": load_settings,
    "save": lambda path: agent_of(settings()).save(path),
    "export": lambda path: agent_of(settings()).export(path),
    "served run": load_base_policy,
    "token file": load_token_digest,
}


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOWHERE", raising=False)
    return tmp_path


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_or_argument(empty: Path, option: str) -> None:
    name = option.split()[1]
    for text in ("s3:/bucket", "C:\\runs", "$NOWHERE/runs", "~nobody-here/runs"):
        words = [word.replace("{}", text) for word in OPTIONS[option]]
        with training_refused():
            outcome = run(*words)
        assert_refused(outcome, f"{name} = {text!r} is not allowed: ")
    assert not list(empty.iterdir())


@pytest.mark.parametrize("call", CALLS)
def test_an_argument_of_a_call(empty: Path, call: str) -> None:
    for text in ("s3:/bucket", "$NOWHERE/runs"):
        with training_refused(), pytest.raises(UserError, match="is not allowed: "):
            CALLS[call](text)
    assert not list(empty.iterdir())


@pytest.mark.parametrize("key", SETTINGS)
@pytest.mark.parametrize("command", ["train", "check", "doctor"])
def test_a_setting(empty: Path, key: str, command: str) -> None:
    (empty / "deploy.yaml").write_text("task: {name: point-navigation, horizon: 5}\n")
    for text in ("s3:/bucket", "gs//b", "C:\\runs", "$NOWHERE/runs"):
        if command == "doctor" and text.startswith("$"):
            continue  # that is found on the cluster
        with training_refused():
            outcome = run(command, "deploy.yaml", "--set", f"{key}={text}")
        assert_refused(outcome, f"{key} = {text!r} is not allowed: ")
    section, name = key.split(".")
    with pytest.raises(UserError, match=rf"{name} = 's3:/bucket' is not allowed"):
        validate_settings({section: {name: "s3:/bucket"}})
    assert [path.name for path in empty.iterdir()] == ["deploy.yaml"]


def test_a_url_that_no_package_knows_is_refused_by_check(empty: Path) -> None:
    assert_refused(
        run("check", "--set", "run.storage=nonsense://b"), "no storage at 'nonsense://b'"
    )


def test_a_recorded_setting_keeps_its_meaning() -> None:
    """A directory of that name is what it was, and what it stays."""
    data = {"run": {"directory": "s3:/bucket", "storage": "gs//b"}}
    recorded = validate_settings(data, recorded=True).run
    assert (recorded.directory, recorded.storage) == ("./s3:/bucket", "./gs//b")


def test_of_a_service() -> None:
    assert parse_serve_settings({"run": "~/runs/a"}).run == "~/runs/a"
    for arguments in ({"run": "s3:/b"}, {"run": "r", "token_file": "s3://b/token"}):
        with pytest.raises(UserError, match=r"= .* is not allowed: write"):
            parse_serve_settings(arguments)


def test_home_and_variables_are_expanded_where_the_run_is(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(empty / "home"))
    monkeypatch.setenv("SCRATCH", str(empty / "scratch"))
    seen: list[Any] = []

    def training(chosen: Settings, folder: Any, **keywords: Any) -> None:
        seen.append((chosen.run.storage, folder.path))
        raise UserError("seen")

    monkeypatch.setattr("maml_ray.runs.train.compile_ahead", lambda *callbacks: None)
    monkeypatch.setattr("maml_ray.runs.train.train_on_ray", training)
    chosen = settings(run={"directory": "~/runs", "storage": "$SCRATCH/kept"})
    with pytest.raises(UserError, match="seen"):
        train(chosen)
    ((storage, folder),) = seen
    assert storage == str(empty / "scratch" / "kept")
    assert folder.parent == empty / "home" / "runs"
