"""Commands about settings and tasks, the shorthands of train, and completion as a shell asks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from maml_ray.common.errors import TrainingFailed
from maml_ray.config.loading import load_settings
from maml_ray.config.presets import PRESETS
from maml_ray.config.reference import sections
from maml_ray.config.section import dotted_keys
from maml_ray.config.settings import Settings
from maml_ray.tasks.registry import TASK_FAMILIES
from tests.bad_input.command_line import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_writes_a_file_of_all_settings() -> None:
    assert run("init").code == 0
    assert load_settings("deploy.yaml") == Settings()
    text = Path("deploy.yaml").read_text(encoding="utf-8")
    assert all(f"  {key.rpartition('.')[2]}: " in text for key in dotted_keys(Settings))


def test_init_takes_a_directory_and_a_preset() -> None:
    outcome = run("init", "new/experiment", "--preset", "velocity")
    assert "new/experiment/deploy.yaml" in outcome.out
    assert load_settings("new/experiment/deploy.yaml") == load_settings(preset="velocity")
    assert run("init", "other.yml").code == 0
    assert Path("other.yml").is_file()


def test_init_overwrites_only_by_force() -> None:
    Path("deploy.yaml").write_text("run: {seed: 7}\n")
    refused = run("init", "--cluster")
    assert (refused.code, refused.out) == (2, "")
    assert "deploy.yaml already exists" in refused.err
    assert "--force" in refused.err
    assert not Path("cluster").exists()
    assert load_settings("deploy.yaml").run.seed == 7
    assert run("init", "--force").code == 0
    assert load_settings("deploy.yaml").run.seed == 0


def test_init_writes_the_manifests() -> None:
    Path("cluster").mkdir()
    assert run("init", "--cluster").code == 2
    assert not Path("deploy.yaml").exists()
    Path("cluster").rmdir()
    assert run("init", "--cluster").code == 0
    for source in (ROOT / "cluster").rglob("*"):
        copy = Path("cluster") / source.relative_to(ROOT / "cluster")
        if source.is_file():
            assert copy.read_bytes() == source.read_bytes()
            assert os.access(copy, os.X_OK) == os.access(source, os.X_OK)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("init", "--preset", "directon"), ["did you mean 'direction'"]),
        (("init", "/dev/null/x"), ["/dev/null", "cannot be written"]),
        (("init", "notes.txt"), ["notes.txt is not the name", "end it in .yaml"]),
        (("explain", "outer.epoch"), ["did you mean 'outer.epochs'"]),
        (("explain", "tasks"), ["'meta_batch.tasks' or 'evaluation.tasks'"]),
        (("explain", ""), ["sections: run, task"]),
        (("presets", "directon"), ["did you mean 'direction'"]),
        (("train", "--set", "epochs=4"), ["epochs is not a setting; did you mean 'outer.epochs'?"]),
        (("train", "--seed", "-1"), ["run.seed = -1 is not allowed"]),
        (("train", "--iterations", "0"), ["run.iterations = 0 is not allowed"]),
        (("submit", "--iterations", "0"), ["run.iterations = 0 is not allowed"]),
        (("train", "--seed", "x"), ["--seed"]),
    ],
)
def test_a_mistake_is_one_sentence(arguments: tuple[str, ...], words: list[str]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    for word in words:
        assert word in outcome.err
    assert not list(Path().iterdir())


def test_a_file_is_never_taken_for_a_directory_of_settings() -> None:
    Path("notes").write_text("text")
    outcome = run("init", "notes", "--cluster")
    assert outcome.code == 2
    assert "notes is not the name of a settings file" in outcome.err
    assert Path("notes").read_text() == "text"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "task.name=ant-velocty"), ["did you mean 'ant-velocity'"]),
        (("--set", "task.env=Pendulm-v1"), ["did you mean 'Pendulum-v1'"]),
        (("--set", "task.options.speed=3"), ["task.options.speed is not an option"]),
        (("--resume", "nowhere"), ["there is no run directory nowhere"]),
        (("--preset", "directon"), ["did you mean 'direction'"]),
    ],
)
def test_train_reports_a_mistake_before_it_loads_pytorch_and_ray(
    arguments: tuple[str, ...], words: list[str]
) -> None:
    with mock.patch("maml_ray.cli.main.status_line") as loading:
        outcome = run("train", *arguments)
    loading.assert_not_called()
    assert outcome.code == 2
    for word in words:
        assert word in outcome.err


def test_explain_describes_a_setting_and_its_presets() -> None:
    outcome = run("explain", "outer.epochs")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[:4] == [
        "outer.epochs",
        "  Passes over the meta-batch.",
        "  allowed: integer ≥ 1",
        "  default: 1",
    ]
    assert "direction 8" in lines[4]


def test_explain_describes_sections() -> None:
    one = run("explain", "inner").out
    assert one.startswith("inner: The inner loop: adaptation to one task.")
    assert "learn_inner_rates" in one
    everything = run("explain").out
    assert all(f"{section.key}: " in everything for section in sections())


def test_explain_takes_a_former_key() -> None:
    outcome = run("explain", "outer.backtracks")
    assert outcome.out.startswith("outer.max_rollbacks\n")
    assert outcome.err == "maml-ray: outer.backtracks is now outer.max_rollbacks\n"


def test_presets_are_listed_and_one_is_printed_as_a_file() -> None:
    listed = run("presets").out
    assert all(re.search(rf"^{name} ", listed, re.M) for name in PRESETS)
    Path("mine.yaml").write_text(run("presets", "finn2017").out)
    expected = load_settings(preset="finn2017")
    assert load_settings("mine.yaml") == expected.replace("run.preset", None)


def test_tasks_lists_families_with_their_parameters_and_options() -> None:
    listed = run("tasks").out
    for name, family in TASK_FAMILIES.items():
        assert f"{name}: {family.description}\n" in listed
    assert "  parameters: speed\n  options: speed_range: [0.0, 2.0], control_cost: 0.05" in listed
    assert "mass/torso, mass/thigh, mass/leg, ... (58)" in listed
    assert "  parameters: none\n  options: control_cost: 0.005, " in listed


def test_seed_and_iterations_are_settings() -> None:
    with mock.patch("maml_ray.runs.train.train", side_effect=TrainingFailed("not today")) as train:
        run("train", "--set", "run.seed=3", "--seed", "4", "--iterations", "7")
    assert train.call_args.args == (Settings().replace({"run.seed": 4, "run.iterations": 7}),)


def complete(*words: str) -> list[str]:
    """Return what bash is offered for the last of ``words``."""
    environment = {
        **os.environ,
        "_MAML_RAY_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    # Modules that would make completion slow cannot be imported.
    script = (
        "import sys; sys.modules.update(torch=None, ray=None, mujoco=None, numba=None)\n"
        "sys.argv = ['maml-ray']; from maml_ray.cli.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert not done.stderr
    return done.stdout.split()


def test_a_shell_completes_commands_presets_keys_and_runs(tmp_path: Path) -> None:
    assert complete("maml-ray", "ex") == ["explain", "export"]
    assert complete("maml-ray", "train", "--preset", "v") == ["velocity", "velocity-3"]
    assert complete("maml-ray", "train", "--set", "outer.ep") == ["outer.epochs="]
    assert "outer.trust_region" in complete("maml-ray", "explain", "outer.t")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "settings.yaml").touch()
    assert complete("maml-ray", "evaluate", "r") == ["runs/mine"]
    assert complete("maml-ray", "train", "--resume", "runs/x") == []


def test_help_groups_the_commands_and_has_completion() -> None:
    page = run("--help").out
    for panel in ("Train", "Settings and tasks", "Trained runs", "Clusters", "Help"):
        assert f"─ {panel} ─" in page
    assert "─ Commands ─" not in page, "a command without a panel"
    assert "--install-completion" in page
