from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.reproduction.captions import command
from tests.reproduction.conftest import EXPERIMENT, MakeRun
from tests.reproduction.experiments import EXPERIMENTS, PLOTS, Experiment
from tests.reproduction.measurements import read_result
from tests.reproduction.plots import By, returns_figure, speeds_figure
from tests.reproduction.published_results import CURVES, RETURNS
from tests.reproduction.results import write_results
from tests.small_runs import quick_pictures

BOTH = [(EXPERIMENT, 0), (EXPERIMENT, 1)]
TABLE = """\
| experiment | seeds | env steps | minutes | tasks | actions | before | after 1 step | after 2 \
| after 3 | 1 step, 2 episodes |
|---|---|---|---|---|---|---|---|---|---|---|
| tiny | 2 | 0.0 M | 2.0 | all | sampled | 0.0 (-5.0 to 5.0) | 100 (95 to 105) \
| 200 (195 to 205) | 300 (295 to 305) | 95 (90 to 100) |
|  |  |  |  | all | mean | 1,000 (995 to 1,005) | 1,100 (1,095 to 1,105) \
| 1,200 (1,195 to 1,205) | 1,300 (1,295 to 1,305) | 1,095 (1,090 to 1,100) |
|  |  |  |  | forward | sampled | 5.0 (0.0 to 10.0) | 105 (100 to 110) | 205 (200 to 210) \
| 305 (300 to 310) | 100 (95 to 105) |
|  |  |  |  | forward | mean | 1,005 (1,000 to 1,010) | 1,105 (1,100 to 1,110) \
| 1,205 (1,200 to 1,210) | 1,305 (1,300 to 1,310) | 1,100 (1,095 to 1,105) |
|  |  |  |  | backward | sampled | -5.0 (-10.0 to 0.0) | 95 (90 to 100) | 195 (190 to 200) \
| 295 (290 to 300) | 90.0 (85.0 to 95.0) |
|  |  |  |  | backward | mean | 995 (990 to 1,000) | 1,095 (1,090 to 1,100) \
| 1,195 (1,190 to 1,200) | 1,295 (1,290 to 1,300) | 1,090 (1,085 to 1,095) |
| tiny, untrained | 2 | 0 |  | all | sampled | 0.0 (-5.0 to 5.0) | 100 (95 to 105) \
| 200 (195 to 205) | 300 (295 to 305) |  |
"""


def test_the_table_has_every_direction_and_way_to_act(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(seed=0, value=0.0)
    make_run(seed=1, value=10.0)
    with quick_pictures():
        text = write_results(tmp_path, BOTH, tmp_path / "out")
    assert TABLE in text
    assert "Not in the table" not in text
    assert (tmp_path / "out" / "table.md").read_text() == text
    for part in ("40 adaptations", "20 episodes", "--adaptation-episodes 2", "--steps 3"):
        assert part in text, part


def test_missing_runs_are_named_and_the_others_are_written(
    make_run: MakeRun, tmp_path: Path
) -> None:
    unavailable = Experiment("future", "not-yet", ("direction",))
    make_run(seed=1)
    make_run(seed=2, finished=3)
    make_run(seed=3, value=None)
    runs = [*((EXPERIMENT, seed) for seed in range(4)), (unavailable, 0)]
    with quick_pictures():
        text = write_results(tmp_path, runs, tmp_path)
    assert "| tiny | 1 | 0.0 M | 2.0 | all | sampled | -5.0 | 95.0 | 195 | 295 | 90.0 |" in text
    for line in (
        "- tiny, seed 0: not trained\n",
        "- tiny, seed 2: trained for 3 of 4 iterations\n",
        "- tiny, seed 3: trained for 4 of 4 iterations\n",
        "- future, seed 0: not trained (run.preset = 'not-yet' is not known",
    ):
        assert line in text, line


def test_a_run_of_other_settings_is_shown_with_a_note(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run()
    listed = Experiment(
        "tiny", "direction", ("direction",), overrides=("run.iterations=5", "outer.epochs=3")
    )
    with quick_pictures():
        text = write_results(tmp_path, [(listed, 0)], tmp_path)
    assert "| tiny | 1 |" in text
    assert f"{folder} was trained with other settings than those listed" in text
    assert "(run.iterations, outer.epochs)" in text


def test_captions_have_protocol_seeds_published_sources_and_command(
    make_run: MakeRun, tmp_path: Path
) -> None:
    make_run(seed=0)
    make_run(seed=1)
    with quick_pictures():
        write_results(tmp_path, BOTH, tmp_path)
    pages = (tmp_path / "plots.md").read_text()
    steps, time, gradient_steps, directions = pages.split("![")[1:]
    for section, file in (
        (steps, "direction-steps.png"),
        (time, "direction-time.png"),
        (gradient_steps, "direction-gradient-steps.png"),
        (directions, "direction-directions.png"),
    ):
        assert f"]({file})" in section
        assert (tmp_path / file).exists()
        assert "Seeds: tiny 0, 1." in section
        assert "Episodes of 200 steps." in section
        assert '`make reproduce ARGS="--only tiny"`' in section
    assert "PEARL (one seed on an RTX 3080" in steps
    assert "Stars: after training, on the terms of PEARL: one gradient step on 2 episodes" in steps
    assert "Stars" not in gradient_steps
    assert "T = 200, mean actions after two exploration episodes" in time
    assert "PEARL" not in gradient_steps
    assert "time step 0.01 s, ours is 0.05 s" in gradient_steps
    assert "40 adaptations per seed" in directions


def test_the_command_of_a_part_of_the_seeds_names_them(make_run: MakeRun) -> None:
    one = read_result(EXPERIMENT, [make_run(seed=1).path])
    assert command([one]) == 'make reproduce ARGS="--only tiny --seeds 1,"'
    both = read_result(EXPERIMENT, [make_run(seed=0).path, one.runs[0].run_dir.path])
    assert command([both]) == 'make reproduce ARGS="--only tiny"'


@pytest.mark.parametrize(
    ("by", "end", "our_end"), [("steps", 1.444, 0.016), ("time", 10.6979 * 60, 2.0)]
)
def test_published_results_are_drawn_with_ours_on_a_logarithmic_axis(
    make_run: MakeRun, by: By, end: float, our_end: float
) -> None:
    result = read_result(EXPERIMENT, [make_run(seed=0).path, make_run(seed=1).path])
    curves = [curve for curve in CURVES if curve.plots == "direction"]
    returns = [each for each in RETURNS if each.plots == "direction"]
    (axes,) = returns_figure([result], curves, returns, "title", by).axes
    assert axes.get_xscale() == "log"
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    points = {name: np.asarray(line.get_xydata()) for name, line in lines.items()}
    assert points["PEARL"][-1] == pytest.approx([end, 1673.56], rel=1e-3)
    assert set(points["Finn et al. 2017"][:, 1]) == {293}
    assert set(points["Finn et al. 2017, oracle"][:, 1]) == {443}
    assert points["tiny"][-1] == pytest.approx([our_end, 12.0 * 3])
    assert len(axes.collections) == 1  # the band of the seeds
    (star,) = [name for name, line in lines.items() if line.get_marker() == "*"]
    assert points[star].tolist() == [[pytest.approx(our_end), 1090.0]]


def test_tasks_of_different_speeds_are_drawn_over_speed(make_run: MakeRun) -> None:
    speeds = {"slow": {"speed": 0.1}, "middle": {"speed": 0.9}, "fast": {"speed": 1.8}}
    result = read_result(EXPERIMENT, [make_run(tasks=speeds).path])
    figure = speeds_figure([result], "title")
    assert figure is not None
    before, after = figure.axes[0].collections
    assert np.asarray(before.get_offsets()).tolist() == [[0.1, 0.0], [0.9, -10.0], [1.8, -20.0]]
    assert np.asarray(after.get_offsets()).tolist() == [[0.1, 100.0], [0.9, 90.0], [1.8, 80.0]]
    assert result.named_tasks == ()
    assert speeds_figure([read_result(EXPERIMENT, [make_run(seed=1).path])], "title") is None


def test_every_experiment_and_published_result_belongs_to_a_group_of_plots() -> None:
    names = [experiment.name for experiment in EXPERIMENTS]
    assert len(set(names)) == len(names)
    groups = {plots for experiment in EXPERIMENTS for plots in experiment.plots}
    groups |= {curve.plots for curve in CURVES} | {each.plots for each in RETURNS}
    assert groups <= set(PLOTS)
    for curve in CURVES:
        steps, minutes, returns = curve.points()
        assert len(steps) == len(minutes) == len(returns) > 100
