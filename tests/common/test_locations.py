"""Paths and URLs as people write them: one meaning, or the right form in a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from maml_ray.common.locations import (
    LocationError,
    escape_path,
    expand_location,
    expand_path,
    location_problem,
    parse_location,
    parse_path,
    path_problem,
)

MISTYPED = {
    "s3:/bucket/runs": "write s3://bucket/runs",
    "s3:bucket": "write s3://bucket",
    "s3:\\bucket\\runs": "write s3://bucket/runs",
    "gs//bucket": "write gs://bucket",
    "s3//b": "write s3://b",
    "S3://b": "write s3://b",
    "GS:/b": "write gs://b",
    "file:/x": "write file:///x",
    "file://x": "write file:///x",
    "file://~/x": "write ~/x",
    "s3://": "write s3://bucket/runs",
    "s3:///b": "write s3://b",
    "hdsf:/namenode/x": "write hdsf://namenode/x",
    "s3://$BUCKET/runs": "write the value",
    "http://host/runs": "write a directory, or a URL such as s3://",
    "C:\\runs": "write one of this system",
    "c:/runs": "write one of this system",
    "\\\\server\\share": "write one of this system",
    "": "write a path",
}


@pytest.mark.parametrize("text", MISTYPED)
def test_what_looks_like_a_url_is_refused_with_the_right_form(text: str) -> None:
    right = MISTYPED[text]
    assert right in (location_problem(text) or "")
    with pytest.raises(LocationError, match=r"^run\.storage = .* is not allowed: ") as caught:
        expand_location(text, "run.storage")
    assert right in str(caught.value)
    problem = path_problem(text)
    assert problem is not None
    assert "write" in problem
    for proper in (right.removeprefix("write "),) if "://" in right and "URL" not in right else ():
        assert location_problem(proper) is None


@pytest.mark.parametrize(
    "text",
    ["runs", "a//b", "./s3:/x", "/mnt/s3:/x", "../a:/b", "run:1", "2026-01-01T12:00", "a b", "é"],
)
def test_other_paths_are_as_they_are(text: str) -> None:
    assert expand_path(text, "x").absolute() == Path(text).absolute()
    assert expand_location(text, "x") == text


@pytest.mark.parametrize("text", ["./s3:/x", "./~", "./~root/x", ".//gs//x", "./C:/x", "./runs"])
def test_what_has_been_parsed_means_the_same_when_it_is_parsed_again(text: str) -> None:
    for parse in (parse_path, parse_location):
        path = parse(text, "x")
        assert isinstance(path, Path)
        assert path.absolute() == Path.cwd() / text
        assert parse(path, "x") == path


@pytest.mark.parametrize("url", ["s3://b/a", "gs://b", "file:///x", "memory://x", "abfs://c@a/x"])
def test_urls_are_as_they_are_and_no_paths(url: str) -> None:
    assert expand_location(url, "x") == url
    with pytest.raises(LocationError, match="not a URL"):
        expand_path(url, "--run-dir")


def test_home_and_variables_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me$")
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.setenv("BUCKET", "s3://bucket")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOWHERE", raising=False)
    for text, path in {
        "~": "/home/me$",
        "~/runs": "/home/me$/runs",
        "$SCRATCH/runs": "/scratch/runs",
        "${SCRATCH}2/$SCRATCH": "/scratch2//scratch",
        "a/~": "a/~",
        "a$$SCRATCH/$": "a$SCRATCH/$",
    }.items():
        assert str(expand_path(text, "x")) == str(Path(path))
    assert expand_location("$BUCKET/runs", "x") == "s3://bucket/runs"
    for text in ("$NOWHERE/runs", "${NOWHERE}", "$EMPTY/runs", "$BUCKET/runs", "~nobody-here/x"):
        with pytest.raises(LocationError, match=r"^run\.directory = "):
            expand_path(text, "run.directory")


def test_a_path_object_has_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("x", raising=False)
    assert parse_path(Path("/tmp/a$x"), "folder") == Path("/tmp/a$x")
    assert parse_path(Path("~/a$x"), "folder") == Path("/home/me/a$x")
    with pytest.raises(LocationError, match="no environment variable 'x'"):
        parse_path("/tmp/a$x", "folder")
    assert expand_path(escape_path(Path("/tmp/a$x")), "folder") == Path("/tmp/a$x")
    assert os.fspath(parse_path("runs", "folder")) == "runs"
