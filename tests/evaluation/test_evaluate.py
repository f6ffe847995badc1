from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import imageio.v3 as iio
import numpy as np
import pandas
import pytest
from gymnasium.vector import VectorEnv
from rich.console import Console

import maml_ray
from maml_ray.cli.tables import print_evaluation
from maml_ray.common.errors import RunDirError, UserError
from maml_ray.common.seeding import Purpose, seed_sequence
from maml_ray.config.settings import Settings, SettingsError
from maml_ray.evaluation.agent import Agent
from maml_ray.evaluation.evaluate import evaluate
from maml_ray.evaluation.intervals import mean_interval
from maml_ray.evaluation.results import Evaluation
from maml_ray.evaluation.results_file import read_evaluation
from maml_ray.evaluation.video import record_video
from maml_ray.persistence.run_dir import RunDir
from maml_ray.runs.evaluate import EvaluationConfig, RunResult, evaluate_run, read_result
from maml_ray.tasks.families.point_navigation import PointNavigationTasks
from maml_ray.tasks.task import Task
from tests.small_runs import agent_of, quick_pictures, run_of, settings, trained_run


@pytest.fixture(scope="module")
def agent() -> Agent:
    return agent_of(settings())


@pytest.fixture(scope="module")
def evaluation(agent: Agent) -> Evaluation:
    return evaluate(agent, tasks=3, episodes=4, steps=2, seed=5)


def test_every_task_is_measured_after_every_step_in_both_action_modes(
    agent: Agent, evaluation: Evaluation
) -> None:
    keys = [(m.adaptation, m.steps, m.actions) for m in evaluation.measurements]
    assert keys == [
        (task, step, actions)
        for task in range(3)
        for step in range(3)
        for actions in ("stochastic", "mean")
    ]
    tasks = agent.sample_tasks(3, seed=5)
    assert all(m.task == tasks[m.adaptation] for m in evaluation.measurements)
    assert all(len(m.returns) == 4 and m.speeds is None for m in evaluation.measurements)


def by_hand(agent: Agent, task_index: int) -> Iterator[tuple[float, ...]]:
    """Sampled returns of one task, step by step, each in fresh environments."""
    task = agent.sample_tasks(3, seed=5)[task_index]

    def stream(step: int, kind: int) -> np.random.SeedSequence:
        return seed_sequence(5, Purpose.EVALUATION, task_index, step, kind)

    for step in range(3):
        yield tuple(agent.collect(task, episodes=4, seed=stream(step, 1)).returns.tolist())
        agent = agent.adapt(agent.collect_support(task, seed=stream(step, 0)))


def test_it_equals_collecting_and_adapting_step_by_step_in_fresh_environments(
    agent: Agent, evaluation: Evaluation
) -> None:
    for index in range(3):
        returns = [
            m.returns
            for m in evaluation.measurements
            if (m.adaptation, m.actions) == (index, "stochastic")
        ]
        assert returns == list(by_hand(agent, index))


def test_support_sets_have_the_size_asked_for_and_the_one_of_training_by_default(
    agent: Agent, evaluation: Evaluation, tmp_path: Path
) -> None:
    assert evaluation.adaptation_episodes == agent.settings.meta_batch.episodes == 3
    (task,) = agent.sample_tasks(1, seed=5)
    support, measured = (seed_sequence(5, Purpose.EVALUATION, 0, *key) for key in ((0, 0), (1, 1)))
    adapted = agent.adapt(agent.collect_support(task, episodes=2, seed=support))
    expected = adapted.collect(task, episodes=4, seed=measured).returns.tolist()

    folder = run_of(agent.settings, tmp_path / "run")
    config = EvaluationConfig(
        tasks=1, episodes=4, steps=1, adaptation_episodes=2, seed=5, untrained=False, video=False
    )
    with quick_pictures():
        result = evaluate_run(folder, config)
    assert list(result.evaluation.measurements[2].returns) == expected
    assert result.results["adaptation_episodes"] == 2
    assert read_result(folder).evaluation.adaptation_episodes == 2
    with pytest.raises(SettingsError, match="--adaptation-episodes = 10001 is not allowed"):
        evaluate_run(folder, EvaluationConfig(adaptation_episodes=10001))


def test_rows_summarize_the_measurements(evaluation: Evaluation) -> None:
    row = evaluation.row(1, "mean")
    returns = [
        value
        for m in evaluation.measurements
        if (m.steps, m.actions) == (1, "mean")
        for value in m.returns
    ]
    assert (row.task, row.episodes, row.speed) == (None, 12, None)
    assert row.mean == pytest.approx(np.mean(returns))
    assert row.low is not None
    assert row.high is not None
    assert row.low < row.mean < row.high
    first = evaluation.measurements[0]
    mine = next(r for r in evaluation.rows_by_task if r.task == first.task.name)
    assert (mine.steps, mine.actions, mine.episodes) == (0, "stochastic", 4)
    assert mine.mean == pytest.approx(np.mean(first.returns))
    with pytest.raises(KeyError, match="nothing was measured after 7 steps"):
        evaluation.row(7, "mean")


def test_gains_are_differences_within_each_adaptation(evaluation: Evaluation) -> None:
    keys = [(gain.steps, gain.actions) for gain in evaluation.gains]
    assert keys == [(1, "stochastic"), (1, "mean"), (2, "stochastic"), (2, "mean")]
    means = {
        (m.adaptation, m.steps): np.mean(m.returns)
        for m in evaluation.measurements
        if m.actions == "mean"
    }
    differences = np.array([means[task, 2] - means[task, 0] for task in range(3)])
    gain = evaluation.gains[3]
    assert gain.mean == pytest.approx(differences.mean())
    assert (gain.low, gain.high) == pytest.approx(mean_interval(differences))


def test_one_adaptation_has_no_interval_and_says_so(agent: Agent, tmp_path: Path) -> None:
    folder = trained_run(settings(run={"iterations": 1}), tmp_path / "run")
    with quick_pictures():
        result = evaluate_run(folder, EvaluationConfig(tasks=1, episodes=3, steps=1, video=False))
    row, (gain, *_) = result.evaluation.rows[0], result.evaluation.gains
    assert (row.low, row.high, gain.low, gain.high) == (None, None, None, None)
    assert "<td>one adaptation</td>" in result.evaluation._repr_html_()
    assert "<td>one adaptation</td>" in folder.report.read_text()
    console = Console(file=io.StringIO(), width=80)
    print_evaluation(console, read_result(folder).results)
    assert isinstance(console.file, io.StringIO)
    assert "one adaptation │" in console.file.getvalue()
    assert f"gain after 1 step: {gain.mean:+.1f} (one adaptation)" in console.file.getvalue()


def test_speed_is_reported_if_the_task_reports_one() -> None:
    cheetah = agent_of(settings("half-cheetah-direction"))
    found = evaluate(cheetah, tasks=2, episodes=2, steps=0)
    (first, *_) = found.measurements
    assert first.speeds is not None
    task = cheetah.sample_tasks(2)[0]
    stream = seed_sequence(0, Purpose.EVALUATION, 0, 0, 1)
    collected = cheetah.collect(task, episodes=2, seed=stream)
    assert collected.speeds is not None
    np.testing.assert_allclose(np.array(first.speeds), collected.speeds)
    speeds = [m.speeds or () for m in found.measurements if m.actions == "stochastic"]
    assert found.row(0, "stochastic").speed == pytest.approx(np.mean(speeds))


def test_mean_actions_start_from_the_same_states_before_and_after(evaluation: Evaluation) -> None:
    assert len(evaluation.replays) == 2
    for before, after in evaluation.replays:
        assert (before.steps, after.steps) == (0, 2)
        assert before.task == after.task
        assert before.reset_seed == after.reset_seed
    least, greatest = (pair[0].task.parameters for pair in evaluation.replays)
    assert least < greatest


class SplitTasks(PointNavigationTasks):
    """Trains on goals with x < 0, holds out goals with x > 0, and records the goals simulated."""

    simulated: ClassVar[list[Task]] = []

    def sample(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        return tuple(self.task({"x": -x, "y": 0.0}) for x in rng.uniform(0.1, 0.4, count))

    def sample_held_out(self, rng: np.random.Generator, count: int) -> tuple[Task, ...]:
        return tuple(self.task({"x": x, "y": 0.0}) for x in rng.uniform(0.1, 0.4, count))

    def make_vector_env(self, task: Task, *, num_envs: int, horizon: int) -> VectorEnv:
        self.simulated.append(task)
        return super().make_vector_env(task, num_envs=num_envs, horizon=horizon)

    def retarget(self, env: VectorEnv, task: Task) -> bool:
        self.simulated.append(task)
        return super().retarget(env, task)


def test_an_evaluation_draws_from_the_held_out_tasks_and_no_others() -> None:
    agent = agent_of(settings(f"{__name__}:SplitTasks"))
    SplitTasks.simulated.clear()
    found = maml_ray.evaluate(agent, tasks=4, episodes=2, steps=1)
    measured = {m.task for m in found.measurements}
    assert len(measured) == 4
    assert all(dict(task.parameters)["x"] > 0.0 for task in measured)
    assert set(SplitTasks.simulated) == measured  # support sets come from the same tasks


@pytest.mark.parametrize(
    ("sections", "steps"),
    [
        ({}, 1),
        ({"inner": {"steps": 3}}, 3),
        ({"inner": {"steps": 0}}, 1),
        ({"inner": {"steps": 3}, "evaluation": {"steps": 2}}, 2),
        ({"evaluation": {"steps": 0}}, 0),
    ],
)
def test_the_default_number_of_steps_is_from_the_settings_and_at_least_one(
    sections: dict[str, Any], steps: int
) -> None:
    found = evaluate(agent_of(settings(**sections)), tasks=1, episodes=1)
    assert max(m.steps for m in found.measurements) == steps


def test_files_agree_with_the_results_and_with_each_other(tmp_path: Path) -> None:
    folder = run_of(settings(), tmp_path / "run")
    result = evaluate_run(
        folder, EvaluationConfig(tasks=3, episodes=2, steps=1, untrained=True, video=False)
    )
    results = json.loads(folder.evaluation.read_text(), parse_constant=pytest.fail)
    assert results == read_evaluation(folder.evaluation)
    assert results["rows"][2]["mean"] == result.evaluation.row(1, "stochastic").mean
    assert set(results["beside"]) == {"random"}
    assert (results["task"], results["horizon"], results["tasks"]) == ("point-navigation", 8, 3)
    with folder.episodes.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 3 * 2 * 2 * 2  # policies, tasks, steps, ways, episodes
    for policy, rows in (("small", results["rows"]), ("random", results["beside"]["random"])):
        for row in rows:
            mine = [
                float(line["return"])
                for line in lines
                if (line["policy"], line["steps"], line["actions"])
                == (policy, str(row["steps"]), row["actions"])
            ]
            assert np.mean(mine) == pytest.approx(row["mean"])
    assert set(json.loads(lines[0]["parameters"])) == {"x", "y"}


@pytest.fixture(scope="module", params=["point-navigation", "half-cheetah-direction"])
def evaluated(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunResult]:
    folder = trained_run(
        settings(request.param, run={"iterations": 2}), tmp_path_factory.mktemp("run") / "run"
    )
    config = EvaluationConfig(
        tasks=3, episodes=2, steps=1, seed=4, baselines=(folder.path,), untrained=True, video=False
    )
    with quick_pictures():
        yield evaluate_run(folder, config)


def test_the_folder_of_a_result_is_a_path(evaluated: RunResult) -> None:
    assert (Path(evaluated.folder) / "report.html").exists()
    assert str(evaluated.folder) == str(evaluated.folder.path)
    loaded, same = maml_ray.load(evaluated.folder), evaluated.load()
    for name, value in same.parameters.items():
        np.testing.assert_array_equal(loaded.parameters[name], value)


def test_an_earlier_evaluation_is_read_from_its_files(evaluated: RunResult, tmp_path: Path) -> None:
    again = read_result(evaluated.folder)
    assert again.evaluation.measurements == evaluated.evaluation.measurements
    assert again.evaluation.rows == evaluated.evaluation.rows
    assert again.results == evaluated.results
    path, summary = str(evaluated.folder.path), evaluated.evaluation.summary
    assert repr(again) == repr(evaluated) == f"RunResult({path!r}, {summary})"
    with pytest.raises(UserError, match="no episodes to record"):
        record_video(evaluated.load(), again.evaluation.replays, tmp_path / "video.mp4")


def without_an_own_episode(text: str) -> str:
    lines = text.splitlines()
    return "\n".join(lines[:5] + lines[6:])


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text.splitlines()[0],
        lambda text: text.replace("stochastic", "random"),
        lambda text: text.replace("return", "reward"),
        lambda text: text.replace("{", "["),
        without_an_own_episode,
    ],
)
def test_damaged_episodes_are_refused(
    evaluated: RunResult, tmp_path: Path, damage: Callable[[str], str]
) -> None:
    damaged = RunDir(tmp_path)
    shutil.copy(evaluated.folder.evaluation, damaged.evaluation)
    damaged.episodes.write_text(damage(evaluated.folder.episodes.read_text()))
    with pytest.raises(RunDirError, match=r"evaluation.csv does not hold the episodes of an"):
        read_result(damaged)
    damaged.episodes.unlink()
    with pytest.raises(RunDirError, match=r"evaluation.csv does not hold the episodes of an"):
        read_result(damaged)


def test_the_history_of_a_run_is_a_data_frame(evaluated: RunResult) -> None:
    frame = pandas.DataFrame(evaluated.history)
    assert frame["iteration"].tolist() == [0, 1]
    assert frame["total_env_steps"].is_monotonic_increasing
    html = ElementTree.fromstring(f"<div>{evaluated._repr_html_()}</div>")
    (link,) = html.iter("a")
    assert Path(link.attrib["href"]).resolve() == evaluated.folder.report.resolve()
    noted = replace(evaluated, notes=("no video: install <pygame>",))
    assert "no video: install &lt;pygame&gt;" in noted._repr_html_()


def test_each_episode_is_a_row_of_the_data_frame(evaluation: Evaluation) -> None:
    frame = evaluation.to_dataframe()
    assert len(frame) == 3 * 3 * 2 * 4  # adaptations, steps, action modes, episodes
    means = frame.groupby(["steps", "actions"])["return"].mean()
    for row in evaluation.rows:
        assert means[row.steps, row.actions] == pytest.approx(row.mean)
    first = evaluation.measurements[0]
    assert frame.iloc[0].to_dict() == {
        "task": first.task.name,
        "adaptation": 0,
        "steps": 0,
        "actions": "stochastic",
        "episode": 0,
        "return": first.returns[0],
        "speed": pytest.approx(np.nan, nan_ok=True),
        "task_x": dict(first.task.parameters)["x"],
        "task_y": dict(first.task.parameters)["y"],
    }


def test_without_pandas_it_says_what_to_install(
    evaluation: Evaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="a data frame needs pandas: pip install pandas"):
        evaluation.to_dataframe()


def test_an_evaluation_is_shown_in_a_line_and_in_notebooks_as_a_table(
    evaluation: Evaluation,
) -> None:
    before, after = (evaluation.row(steps, "stochastic") for steps in (0, 2))
    summary = f"mean return {before.mean:.1f} before adaptation, {after.mean:.1f} after 2 steps"
    assert repr(evaluation) == f"Evaluation(tasks=3, episodes=4, seed=5, {summary})"
    table = ElementTree.fromstring(evaluation._repr_html_())
    cells = [[cell.text or "" for cell in row] for row in table.iter("tr")]
    assert cells[0] == ["steps", "actions", "mean return", "95% interval", "m/s"]
    assert cells[1][:3] == ["0", "stochastic", f"{before.mean:.1f}"]
    assert len(cells) == 1 + len(evaluation.rows)
    assert all(len(repr(episode)) < 200 for pair in evaluation.replays for episode in pair)


@pytest.mark.parametrize("content", ["", "[1]", "{}", "not JSON"])
def test_a_damaged_evaluation_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(
        RunDirError, match=r"does not hold an evaluation \(.*\); do it again: maml-ray evaluate "
    ):
        read_evaluation(path)


def test_a_baseline_is_evaluated_on_the_same_tasks_with_its_own_rate(tmp_path: Path) -> None:
    folder = run_of(settings(), tmp_path / "a")
    other_settings = settings(inner={"learning_rate": 0.01}, run={"seed": 3})
    other = run_of(other_settings, tmp_path / "b")
    config = EvaluationConfig(
        tasks=2, episodes=3, steps=1, baselines=(other.path, other.path), video=False
    )
    results = evaluate_run(folder, config).results
    assert list(results["beside"]) == ["small (2)", "small (3)"]
    expected = evaluate(agent_of(other_settings), tasks=2, episodes=3, steps=1)
    found = results["beside"]["small (2)"]
    assert [row["mean"] for row in found] == [r.mean for r in expected.rows]


@pytest.mark.parametrize(
    "other",
    [settings("half-cheetah-direction"), settings(task={"horizon": 9})],
    ids=["family", "horizon"],
)
def test_a_run_of_other_tasks_is_refused_as_a_baseline(tmp_path: Path, other: Settings) -> None:
    folder, baseline = run_of(settings(), tmp_path / "a"), run_of(other, tmp_path / "b")
    with pytest.raises(SettingsError, match="cannot be compared"):
        evaluate_run(folder, EvaluationConfig(baselines=(baseline.path,)))
    assert not folder.evaluation.exists()


def test_the_inner_rate_can_be_overridden_unless_rates_were_learned(tmp_path: Path) -> None:
    folder = run_of(settings(), tmp_path / "a")
    results = evaluate_run(
        folder, EvaluationConfig(tasks=1, episodes=2, inner_rate=0.3, video=False)
    ).results
    other = evaluate(agent_of(settings(inner={"learning_rate": 0.3})), tasks=1, episodes=2)
    assert [row["mean"] for row in results["rows"]] == [row.mean for row in other.rows]
    learned = run_of(settings(inner={"learn_inner_rates": True}), tmp_path / "b")
    with pytest.raises(SettingsError, match="learned its inner rates"):
        evaluate_run(learned, EvaluationConfig(inner_rate=0.3))


def test_the_untrained_policy_has_the_initial_parameters(agent: Agent) -> None:
    moved = replace(agent, parameters={k: v + 1 for k, v in agent.parameters.items()})
    fresh = moved.untrained()
    for name, value in agent.parameters.items():
        np.testing.assert_array_equal(fresh.parameters[name], value)


def test_the_video_shows_both_tasks_before_and_after_side_by_side(tmp_path: Path) -> None:
    folder = run_of(settings(), tmp_path / "run")
    result = evaluate_run(folder, EvaluationConfig(tasks=4, episodes=1, steps=1))
    assert result.notes == ()
    frames = iio.imread(folder.video).astype(int)
    steps = max(len(episode.actions) for pair in result.evaluation.replays for episode in pair)
    assert frames.shape[0] == steps + 1
    height, width = frames.shape[1] // 2, frames.shape[2] // 2
    for line in (slice(0, height), slice(height, None)):
        left, right = frames[:, line, :width], frames[:, line, width:]
        caption = 44
        assert np.abs(left[0, caption:] - right[0, caption:]).mean() < 2.0  # the same start
        assert np.abs(left[-1, caption:] - right[-1, caption:]).max() > 60  # another end
        assert left[0, :caption].min() < 100 < 200 < left[0, :caption].max()  # ink on paper
        assert np.abs(left[0, :caption] - right[0, :caption]).mean() > 1.0  # other words
    top, bottom = frames[0, :height, :width], frames[0, height:, :width]
    assert np.abs(top - bottom).max() > 60  # another goal
