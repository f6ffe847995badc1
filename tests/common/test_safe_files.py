"""Files that are written with no surprises."""

from __future__ import annotations

from pathlib import Path

from maml_ray.common.safe_files import RetryingFile
from tests.full_disk import full_disk


def test_what_a_full_disk_refuses_is_written_when_it_has_room_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with full_disk() as disk:
        file = RetryingFile(path)
        for word, disk.full in (
            ("one", False),
            ("two", True),
            ("three", True),
            ("four", False),
            ("five", True),
        ):
            file.append(f"{word}\n".encode())
        assert path.read_bytes() == b"one\ntwo\nthree\nfour\nfi"
        disk.full = False
        file.close()
    assert path.read_text().splitlines() == ["one", "two", "three", "four", "five"]


def test_a_file_that_is_there_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"before\n")
    RetryingFile(path).append(b"after\n")
    assert path.read_bytes() == b"before\nafter\n"
