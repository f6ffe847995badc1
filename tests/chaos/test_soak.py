"""A run under faults ends with the same parameters as an undisturbed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import KINDS, schedule
from tests.chaos.soak import soak

SHORT = (
    "rollout actor killed",
    "learner killed",
    "node lost, another added",
    "rollout actor hangs",
    "newest checkpoint damaged",
)


@pytest.mark.cluster
def test_five_different_faults_do_not_change_the_result(tmp_path: Path) -> None:
    faults = [fault for kind in SHORT for fault in KINDS if fault.kind == kind]
    outcome = soak(faults, 1, tmp_path / "run")
    assert outcome.faults.total() == len(SHORT)
    assert outcome.fingerprint == outcome.undisturbed


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_soak_of_all_faults_does_not_change_the_result(tmp_path: Path) -> None:
    faults = schedule(seed=0, count=56)
    assert {fault.kind for fault in faults} == {fault.kind for fault in KINDS}
    outcome = soak(faults, 0, tmp_path / "run")
    print(f"\n{outcome.table()}")
    assert outcome.faults.total() >= 50
    assert outcome.fingerprint == outcome.undisturbed


def test_a_schedule_depends_on_its_seed_and_has_every_kind() -> None:
    assert schedule(3, 60) == schedule(3, 60)
    assert schedule(3, 60) != schedule(4, 60)
    assert {fault.kind for fault in schedule(3, 60)} == {fault.kind for fault in KINDS}
