"""A batch against single environments: equal to the last bit, dtypes and infos included."""

from __future__ import annotations

from typing import Any

import numpy as np

from maml_ray.rollouts.trajectories import Trajectories


def assert_same_infos(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(actual) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(actual[key], value, err_msg=key)
        assert actual[key].dtype == value.dtype, key


def assert_same_reset(actual: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    np.testing.assert_array_equal(actual[0], expected[0])
    assert actual[0].dtype == expected[0].dtype
    assert_same_infos(actual[1], expected[1])


def assert_same_step(actual: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    for mine, theirs in zip(actual[:4], expected[:4], strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    assert_same_infos(actual[4], expected[4])


def assert_same_trajectories(actual: Trajectories, expected: Trajectories) -> None:
    mine, theirs = ({**vars(each), **each.info_means} for each in (actual, expected))
    assert set(mine) == set(theirs)
    for name in set(mine) - {"info_means"}:
        np.testing.assert_array_equal(mine[name], theirs[name], name)
