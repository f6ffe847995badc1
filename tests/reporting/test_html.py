from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from maml_ray.config.loading import load_settings, validate_settings
from maml_ray.config.settings import Settings
from maml_ray.persistence.provenance import read_provenance, record_provenance
from maml_ray.persistence.run_dir import RunDir
from maml_ray.reporting.html import write_report
from maml_ray.reporting.svg import write_plots
from tests.reporting.conftest import MakeRecord

VERSIONS = {"maml-ray": "9.9", "torch": "2.x"}


def row(steps: int, actions: str, **changes: Any) -> dict[str, Any]:
    values = {"task": None, "mean": 100.25 + steps, "low": 90.0, "high": 110.0, "speed": 1.5}
    return {"steps": steps, "actions": actions, "episodes": 6, **values, **changes}


ROWS = [row(steps, actions) for steps in (0, 1) for actions in ("stochastic", "mean")]
EVALUATION = {
    "tasks": 2,
    "episodes": 3,
    "rows": ROWS,
    "rows_by_task": [
        {**one, "task": task, "speed": None} for task in ("<b>left</b>", "right") for one in ROWS
    ],
    "beside": {"random": [row(0, "stochastic", mean=-7.5)]},
}


class Page(HTMLParser):
    """Collects the text, the tags, and every address that the page refers to."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.unclosed: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br", "img", "input"):
            self.unclosed.append(tag)
        self.ids += [value or "" for key, value in attrs if key == "id"]
        names = ("src", "href", "data", "srcset", "xlink:href", "poster", "action")
        self.addresses += [value or "" for key, value in attrs if key in names]

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(
    folder: Path,
    rows: list[dict[str, Any]],
    evaluation: Any,
    settings: Settings,
    plots: dict[str, str] | None = None,
) -> Page:
    run = RunDir(folder)
    return Page(write_report(run, settings, rows, evaluation, VERSIONS, plots).read_text())


def test_it_contains_metrics_settings_plots_and_video(tmp_path: Path, record: MakeRecord) -> None:
    rows = [record(iteration).as_row() for iteration in range(5)]
    plots = write_plots(rows, EVALUATION, RunDir(tmp_path))
    RunDir(tmp_path).video.write_bytes(b"not really a film")
    page = report(tmp_path, rows, EVALUATION, validate_settings({"outer": {"clip": 0.123}}), plots)
    for words in ("101.2", "90.0 to 110.0", "clip: 0.123", "9.9", "0.02 M", "half-cheetah"):
        assert words in page.text, words
    assert page.tags.count("svg") == len(plots) == 11
    assert page.tags.count("video") == 1
    assert page.unclosed == []
    assert len(page.ids) == len(set(page.ids))


def test_it_is_self_contained(tmp_path: Path, record: MakeRecord) -> None:
    rows = [record(0).as_row()]
    plots = write_plots(rows, EVALUATION, RunDir(tmp_path))
    RunDir(tmp_path).video.write_bytes(b"not really a film")
    page = report(tmp_path, rows, EVALUATION, Settings(), plots)
    assert any(address.startswith("data:video/mp4") for address in page.addresses)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    style = RunDir(tmp_path).report.read_text().partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_it_follows_the_theme_and_the_width_of_the_screen(tmp_path: Path) -> None:
    report(tmp_path, [], None, Settings())
    source = RunDir(tmp_path).report.read_text()
    light, dark = source.split("@media (prefers-color-scheme: dark)")
    for variable in ("--ink", "--paper", "--line", *(f"--series-{i}" for i in range(1, 8))):
        assert f"{variable}: #" in light
        assert f"{variable}: #" in dark
    assert 'name="viewport" content="width=device-width' in source


def test_the_head_shows_what_the_run_is_and_where_it_was_trained(
    tmp_path: Path, record: MakeRecord
) -> None:
    folder = RunDir(tmp_path)
    record_provenance(folder)
    record_provenance(folder)
    rows = [record(1).as_row()]
    text = report(tmp_path, rows, None, validate_settings({"run": {"seed": 7}})).text
    first, _ = read_provenance(folder)
    for words in ("Seed 7", first.machine, first.host, first.started, "Resumed 1 times"):
        assert words in text, words
    assert "Training time 0:04" in text
    assert f"maml-ray {first.versions['maml-ray']}" in text
    assert first.commit is None or first.commit in text


def test_a_run_that_recorded_no_machine_has_a_report(tmp_path: Path) -> None:
    RunDir(tmp_path).provenance.write_text('not JSON\n{"host": 3}\n[]\n')
    text = report(tmp_path, [], None, Settings()).text
    assert "Seed 0" in text
    assert "has not recorded its own" in text
    assert "Machine" not in text.replace("Packages of the machine", "")


def test_settings_that_differ_are_shown_beside_the_defaults(tmp_path: Path) -> None:
    settings = validate_settings({"outer": {"clip": 0.125, "max_query_kl": None}})
    text = report(tmp_path, [], None, settings).text
    assert f"outer.clip 0.125 {Settings().outer.clip}" in text
    assert f"outer.max_query_kl null {Settings().outer.max_query_kl}" in text
    assert "All settings are the defaults" in report(tmp_path, [], None, Settings()).text


def test_missing_parts_are_mentioned(tmp_path: Path) -> None:
    page = report(tmp_path, [], None, Settings())
    for words in ("No iteration", "Not evaluated yet", "No video", "no plots"):
        assert words in page.text


def test_an_evaluation_is_shown_without_metrics(tmp_path: Path) -> None:
    page = report(tmp_path, [], EVALUATION, Settings())
    for words in (
        "100 return (1.50 m/s) before adaptation",
        "101 return (1.50 m/s) after 1 adaptation step",
    ):
        assert words in page.text
    assert "No iteration" in page.text


def test_tasks_and_other_policies_have_rows_of_their_own(tmp_path: Path) -> None:
    page = report(tmp_path, [], EVALUATION, Settings())
    assert "random 0 (before) stochastic -7.5 90.0 to 110.0 1.50 6" in page.text
    assert "<b>left</b> 0 (before) stochastic 100.2 90.0 to 110.0 6" in page.text  # no speed
    assert "right 1 mean 101.2" in page.text
    assert "meta-trained 0 (before)" in page.text
    one_task = {**EVALUATION, "rows_by_task": ROWS}
    assert "By task" not in report(tmp_path, [], one_task, Settings()).text


def test_the_preset_is_named(tmp_path: Path) -> None:
    settings = load_settings(preset="promp2019")
    assert "preset promp2019" in report(tmp_path, [], None, settings).text


def test_commands_are_quoted_for_the_shell(tmp_path: Path) -> None:
    folder = tmp_path / "my <b>runs & more"
    folder.mkdir()
    page = report(folder, [], None, Settings())
    assert f"maml-ray train '{folder}/settings.yaml'" in page.text
    assert f"maml-ray evaluate '{folder}'" in page.text
    assert "b" not in page.tags


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>:X", "a'\"><img src=x>:Y"])
def test_text_from_settings_is_escaped(tmp_path: Path, hostile: str) -> None:
    page = report(tmp_path, [], None, validate_settings({"task": {"name": hostile}}))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert hostile in page.text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([{}, {}], None),
        (
            [{"lost": 2, "duplicated": 1}, {"lost": 1, "discarded_episodes": 4}],
            "3 rollouts lost and repeated; 1 slow rollouts duplicated on a second actor; "
            "4 failed episodes collected again.",
        ),
        (
            [{"skipped": "task 1 broke"}, {"learner_restarts": 2}],
            "2 learner restarts; 1 updates",
        ),
    ],
)
def test_faults_that_training_recovered_from_are_listed(
    tmp_path: Path, record: MakeRecord, changes: list[dict[str, Any]], expected: str | None
) -> None:
    rows = [{**record(i).as_row(), **change} for i, change in enumerate(changes)]
    page = write_report(RunDir(tmp_path), Settings(), rows, None, VERSIONS)
    text = page.read_text(encoding="utf-8")
    assert ("Faults that training recovered from" in text) == (expected is not None)
    assert expected is None or expected in text
