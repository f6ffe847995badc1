"""Run folders that are damaged, mixed up or hostile: a sentence that names the file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import maml_ray
from maml_ray.common.errors import RunDirError, RunWarning, UserError
from maml_ray.config.loading import dump_settings
from maml_ray.persistence.run_dir import RunDir
from maml_ray.runs.adapt import adapt_run
from maml_ray.runs.evaluate import EvaluationConfig, evaluate_run
from tests.bad_input import damage
from tests.bad_input.command_line import (
    REACHED,
    Outcome,
    assert_refused,
    fingerprint,
    run,
    training_refused,
)
from tests.bad_input.test_settings import cases
from tests.small_runs import quick_pictures, run_of, settings

pytestmark = pytest.mark.filterwarnings("ignore::maml_ray.common.errors.RunWarning")
ROW = {
    "return_before": -1.0,
    "return_after": -0.5,
    "loss": 0.1,
    "gradient_norm": 0.2,
    "wall_s": 1.0,
    "collect_s": 0.5,
    "adapt_s": 0.1,
    "learn_s": 0.3,
    "rest_s": 0.1,
    "elapsed_s": 1.0,
}
READING = ("evaluate", "adapt", "compare", "report", "resume")
FILES = (
    "settings.yaml",
    "metrics.jsonl",
    "evaluation.json",
    "evaluation.csv",
    "report.html",
    "evaluation.mp4",
    "plots/returns.svg",
    "checkpoints/00000001/manifest.json",
    "checkpoints/00000001/parameters.safetensors",
    "checkpoints/00000001/learner.safetensors",
)
FOLDERS = ("plots", "tensorboard", "adapted", "checkpoints", "checkpoints/00000001")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as a finished run leaves it, without its video."""
    folder = run_of(settings(), tmp_path_factory.mktemp("finished") / "run")
    rows = ({"iteration": i, "total_env_steps": 10 * (i + 1), **ROW} for i in range(3))
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate_run(folder, EvaluationConfig(tasks=2, episodes=2, untrained=True, video=False))
    folder.tensorboard.mkdir(exist_ok=True)
    folder.video.write_bytes(b"no film")
    return folder.path


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def use(command: str, folder: Path) -> Outcome:
    """One of the commands that read a run, at its cheapest."""
    name, output = str(folder), str(folder.parent / "output")
    shutil.rmtree(output, ignore_errors=True)
    arguments = {
        "evaluate": ["--tasks", "1", "--episodes", "1", "--no-random", "--no-record"],
        "adapt": ["--task", '{"x": 0.1, "y": 0.2}', "--episodes", "1", "--output", output],
        "compare": ["--output", output],
        "report": [],
        "export": ["--format", "torchscript", "--output", f"{output}.pt"],
    }
    with training_refused(), quick_pictures():
        if command == "resume":
            return run("train", "--resume", name)
        return run(command, name, *arguments[command])


WRITTEN = (
    "evaluation.json",
    "evaluation.csv",
    "report.html",
    "plots",
    "tensorboard/evaluation",
    ".lock",
)


def others(before: dict[str, str]) -> dict[str, str]:
    """What no command may touch."""
    kept = (name for name in before if not name.startswith(WRITTEN) and name != "tensorboard")
    return {name: before[name] for name in kept}


def assert_reported(outcome: Outcome, folder: Path, *names: str) -> None:
    """Exit code 0, or training reached, or one sentence with the path in it."""
    assert "Traceback" not in outcome.out + outcome.err
    if outcome.code == 1:
        assert REACHED in outcome.err
    elif outcome.code != 0:
        assert_refused(outcome, str(folder))
        # Without rows of metrics there is no iteration to show, and that is what is said.
        allowed = (*names, "has not finished an iteration")
        assert not names or any(name in outcome.err for name in allowed), outcome.err


@pytest.mark.parametrize("command", READING)
def test_a_whole_folder_is_read(copied: Path, command: str) -> None:
    outcome = use(command, copied)
    assert outcome.code == (1 if command == "resume" else 0), outcome


@pytest.mark.parametrize("how", damage.ANYWHERE, ids=lambda how: how.__name__)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file(copied: Path, file: str, how: damage.Damage) -> None:
    how(copied / file)
    before = others(fingerprint(copied))
    for command in READING:
        outcome = use(command, copied)
        # A broken checkpoint is reported with its folder, mixed-up files with the one next to them.
        assert_reported(outcome, copied, file.split("/")[0].removesuffix(".yaml"))
        assert others(fingerprint(copied)) == before
    load(copied)


def load(folder: Path) -> None:
    """From Python it is an error of the same kind."""
    try:
        maml_ray.load(folder)
    except UserError as error:
        message = str(error)
    else:
        return
    assert str(folder) in message
    assert message.isprintable()


@pytest.mark.parametrize("command", ["evaluate", "adapt", "export", "resume"])
def test_a_damaged_newest_checkpoint_is_named_where_the_one_before_is_used(
    copied: Path, command: str
) -> None:
    shutil.copytree(copied / "checkpoints/00000001", copied / "checkpoints/00000002")
    damage.large(copied / "checkpoints/00000002/parameters.safetensors")
    outcome = use(command, copied)
    assert outcome.code == (1 if command == "resume" else 0), outcome
    (told,) = (line for line in outcome.err.splitlines() if line.startswith("warning: "))
    assert "00000002" in told
    assert told.endswith("checkpoint 1 is used")
    with pytest.warns(RunWarning, match="checkpoint 1 is used"):
        maml_ray.load(copied)


@pytest.mark.parametrize("how", ["missing", "file", "loop", "elsewhere"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_damaged_folder(copied: Path, tmp_path: Path, name: str, how: str) -> None:
    place = copied / name
    if place.exists():
        shutil.move(place, tmp_path / "outside")
    (tmp_path / "outside").mkdir(exist_ok=True)
    if how == "file":
        place.write_text("no folder")
    elif how == "loop":
        place.symlink_to(place)
    elif how == "elsewhere":
        place.symlink_to(tmp_path / "outside")
    before, outside = others(fingerprint(copied)), fingerprint(tmp_path / "outside")
    for command in READING:
        outcome = use(command, copied)
        assert_reported(outcome, copied, name.split("/")[0])
        assert others(fingerprint(copied)) == before
        assert fingerprint(tmp_path / "outside") == outside, "written outside the run folder"
        if how == "elsewhere" and command != "compare":
            assert_refused(outcome, "leads out of")
    load(copied)


@cases(40)
@given(data=st.data(), value=st.sampled_from((*damage.ODD, ...)))
def test_an_evaluation_of_another_shape(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: Any
) -> None:
    copied = small_copy(finished, tmp_path_factory)
    tree = json.loads((finished / "evaluation.json").read_text())
    place = data.draw(st.sampled_from(damage.places(tree)))
    command = data.draw(st.sampled_from(["compare", "report"]))
    (copied / "evaluation.json").write_text(json.dumps(damage.replaced(tree, place, value)))
    assert_reported(use(command, copied), copied, "evaluation.json")


@cases(40)
@given(data=st.data(), value=st.sampled_from((*damage.ODD, ...)))
def test_metrics_of_another_shape(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: Any
) -> None:
    copied = small_copy(finished, tmp_path_factory)
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    place = data.draw(st.sampled_from(damage.places(rows)))
    command = data.draw(st.sampled_from(["compare", "report", "resume"]))
    rows = damage.replaced(rows, place, value)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (copied / "metrics.jsonl").write_text(text)
    assert_reported(use(command, copied), copied, "metrics.jsonl", "has not finished")


@cases(30)
@given(data=st.data(), value=st.sampled_from((*damage.ODD, ...)))
def test_settings_of_another_shape(
    finished: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: Any
) -> None:
    copied = small_copy(finished, tmp_path_factory)
    tree = settings().model_dump(mode="json")
    place = data.draw(st.sampled_from(damage.places(tree)))
    (copied / "settings.yaml").write_text(json.dumps(damage.replaced(tree, place, value)))
    # Another storage than the run's is an empty one.
    assert_reported(
        use("resume", copied), copied, "settings", "policy", "that the storage is mounted"
    )
    load(copied)


def small_copy(finished: Path, factory: pytest.TempPathFactory) -> Path:
    """A copy without pictures, in one place for all cases."""
    place = factory.getbasetemp() / "small copy"
    shutil.rmtree(place, ignore_errors=True)
    unneeded = shutil.ignore_patterns("*.png", "*.html", "*.csv", "*.mp4")
    return Path(shutil.copytree(finished, place, ignore=unneeded))


@pytest.mark.parametrize("shape", damage.SHAPES, ids=repr)
@pytest.mark.parametrize("file", ["settings.yaml", "metrics.jsonl", "evaluation.json", FILES[7]])
def test_json_of_another_shape(copied: Path, file: str, shape: Any) -> None:
    for text in (json.dumps(shape), json.dumps([shape] * 2) + "\n\n"):
        (copied / file).write_text(text)
        for command in ("compare", "report", "resume"):
            assert_reported(
                use(command, copied), copied, file.split(".")[0].split("/")[0], "metrics.jsonl"
            )
        load(copied)


@pytest.mark.parametrize("file", ["settings.yaml", "metrics.jsonl", "evaluation.json", FILES[7]])
def test_json_nested_a_hundred_thousand_levels_deep(copied: Path, file: str) -> None:
    (copied / file).write_text(damage.nested_text(40_000) + "\n{}\n")
    for command in ("compare", "report", "resume"):
        assert_reported(use(command, copied), copied, file.split("/")[0])
    load(copied)


def test_a_file_of_a_terabyte_is_not_read(copied: Path) -> None:
    for file in ("settings.yaml", "metrics.jsonl", "evaluation.json", "evaluation.mp4", *FILES[7:]):
        damage.large(copied / file)
        for command in ("compare", "report", "evaluate", "resume"):
            assert_reported(use(command, copied), copied, file.split("/")[0])
        (copied / file).unlink()
        if file == "settings.yaml":
            (copied / file).write_text(dump_settings(settings()))


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": {"hidden_sizes": [5]}},
        {"policy": {"activation": "relu"}},
        {"inner": {"learn_inner_rates": True}},
        {"policy": {"action_scale": 0.5}},
    ],
    ids=repr,
)
def test_settings_of_another_run(copied: Path, changes: dict[str, Any]) -> None:
    (copied / "settings.yaml").write_text(dump_settings(settings(**changes)))
    for command in ("evaluate", "adapt", "resume"):
        assert_refused(use(command, copied), str(copied), "does not fit its settings")
    with pytest.raises(RunDirError, match="does not fit its settings"):
        maml_ray.load(copied)


def test_settings_of_another_task(copied: Path) -> None:
    (copied / "settings.yaml").write_text(dump_settings(settings("half-cheetah-direction")))
    for command in ("evaluate", "adapt", "resume"):
        assert_refused(use(command, copied), str(copied), "does not fit its settings", "17")


@pytest.fixture(scope="session")
def adapted(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adapted") / "policy"
    return adapt_run(finished, {"x": 0.1, "y": 0.2}, episodes=2, output=place).folder


@pytest.mark.parametrize("how", damage.ANYWHERE, ids=lambda how: how.__name__)
@pytest.mark.parametrize("file", ["policy.json", "parameters.safetensors"])
def test_a_damaged_policy(adapted: Path, tmp_path: Path, file: str, how: damage.Damage) -> None:
    copied = Path(shutil.copytree(adapted, tmp_path / "policy"))
    how(copied / file)
    with pytest.raises(UserError) as caught:
        maml_ray.load(copied)
    assert str(copied) in str(caught.value)


@cases(60)
@given(data=st.data(), value=st.sampled_from((*damage.ODD, ...)))
def test_a_policy_of_another_shape(
    adapted: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, value: Any
) -> None:
    copied = tmp_path_factory.getbasetemp() / "policy copy"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(adapted, copied)
    tree = json.loads((adapted / "policy.json").read_text())
    place = data.draw(st.sampled_from(damage.places(tree)))
    (copied / "policy.json").write_text(json.dumps(damage.replaced(tree, place, value)))
    load(copied)


def test_the_run_folder_itself_may_be_anywhere(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copied)
    assert use("report", tmp_path / "link").code == 0
    (tmp_path / "a").mkdir()
    assert use("report", tmp_path / "a" / ".." / "run").code == 0


def test_a_run_folder_that_can_be_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("x" * 300, "file", "loop", "a\0b", "\udcff", "\n", "file/run", "", "/dev/zero"):
        for command in ("evaluate", "adapt", "compare", "report", "resume"):
            assert_refused(use(command, tmp_path / name if name else Path("")))
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]
    assert RunDir(tmp_path).path.is_dir()
