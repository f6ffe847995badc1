from __future__ import annotations

import re
from pathlib import Path

import pytest

from maml_ray.config.loading import load_settings, validate_settings
from maml_ray.config.settings import SettingsError
from maml_ray.jobs.submission import (
    check_survives_job,
    check_task_uploaded,
    entrypoint,
    job_settings,
    metadata,
    new_job_id,
    train_command,
)


def test_a_job_reads_the_same_settings_and_joins_the_cluster_that_it_runs_on(
    tmp_path: Path,
) -> None:
    own = {"run": {"name": "first"}, "cluster": {"address": "head:6379", "rollout_actors": 3}}
    file = tmp_path / "settings.yaml"
    file.write_text(job_settings(validate_settings(own)))
    own["cluster"] = {"rollout_actors": 3}
    assert load_settings(file) == validate_settings(own)


def test_a_job_is_named_after_the_run_and_never_twice() -> None:
    settings = validate_settings({"run": {"name": "first"}})
    assert re.fullmatch(r"first-[0-9a-f]{8}", new_job_id(settings))
    assert re.fullmatch(r"doctor-first-[0-9a-f]{8}", new_job_id(settings, "doctor-"))
    assert new_job_id(settings) != new_job_id(settings)


def test_metadata_are_strings_with_the_run_its_task_and_the_version() -> None:
    values = metadata(validate_settings({"run": {"name": "a"}, "task": {"name": "ant-velocity"}}))
    assert {"run": "a", "task": "ant-velocity"}.items() <= values.items()
    assert re.match(r"\d", values["version"])


def test_the_command_is_quoted_for_a_shell() -> None:
    assert entrypoint("train", "a b.yaml") == "python -m maml_ray train 'a b.yaml'"


def test_a_run_begins_where_the_same_command_with_resume_looks_for_it() -> None:
    settings = validate_settings({"run": {"name": "first", "directory": "/mnt/my runs"}})
    begun = train_command(settings, "s.yaml", resume=False)
    assert begun == "python -m maml_ray train s.yaml --run-dir '/mnt/my runs/first'"
    again = train_command(settings, "s.yaml", resume=True)
    assert again == "python -m maml_ray train s.yaml --resume auto"


def test_a_run_that_would_be_lost_with_its_job_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"run\.directory = 'runs'.*--set run\.directory"):
        check_survives_job(validate_settings({}))
    check_survives_job(validate_settings({"run": {"directory": "/mnt/runs"}}))
    check_survives_job(validate_settings({"run": {"storage": "s3://bucket/runs"}}))


def test_a_task_of_one_s_own_asks_for_the_folder_that_holds_it() -> None:
    own = validate_settings({"task": {"name": "my_tasks:PendulumTasks"}})
    with pytest.raises(SettingsError, match=r"my_tasks:PendulumTasks.*--working-dir"):
        check_task_uploaded(own, with_folder=False)
    check_task_uploaded(own, with_folder=True)
    check_task_uploaded(validate_settings({}), with_folder=False)
    check_task_uploaded(validate_settings({"task": {"env": "Pendulum-v1"}}), with_folder=False)
    registered = validate_settings({"task": {"env": "my_envs:Mine-v0"}})
    with pytest.raises(SettingsError, match=r"task\.env = 'my_envs:Mine-v0'.*--working-dir"):
        check_task_uploaded(registered, with_folder=False)
