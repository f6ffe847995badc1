"""Uploads, against what Ray itself packs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package

import maml_ray
from maml_ray.common.errors import UserError
from maml_ray.config.loading import load_settings, validate_settings
from maml_ray.jobs import packaging
from maml_ray.jobs.submission import job_settings

ROOT = Path(__file__).parent.parent.parent
SECRETS = ("token", ".env", ".env.production", "cluster/token", "cluster/.env")


def packed_by_ray(folder: Path, target: Path) -> dict[str, int]:
    create_package(str(folder), target, True, excludes=get_runtime_env_default_excludes())
    with zipfile.ZipFile(target) as archive:
        return {one.filename: one.file_size for one in archive.infolist() if not one.is_dir()}


def make_tree(folder: Path) -> None:
    for name in ("a.py", "data.bin", "deep/b.py", "deep/c.log", ".git/x", "runs/r", ".venv/y"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x" * len(name))
    (folder / "empty").mkdir()
    (folder / ".gitignore").write_text("runs/\n")
    (folder / ".rayignore").write_text("*.bin\n")
    (folder / "deep" / ".rayignore").write_text("*.log\n")


def test_a_folder_is_what_ray_would_pack_of_it(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    make_tree(tmp_path / "tree")
    expected = packed_by_ray(tmp_path / "tree", tmp_path / "ray.zip")
    assert dict(packaging.folder_upload(tmp_path / "tree").sizes) == expected
    assert {"a.py", "deep/b.py"} <= set(expected)
    assert not {"data.bin", "deep/c.log", ".git/x", "runs/r", ".venv/y"} & set(expected)


def test_this_repository_goes_up_without_pictures_tests_and_caches(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True, timeout=60)
    for name in SECRETS:
        (clone / name).write_text("secret")
    status = ["git", "-C", str(clone), "status", "--porcelain"]
    assert not subprocess.run(status, check=True, capture_output=True, timeout=60).stdout
    packed = packed_by_ray(clone, tmp_path / "ray.zip")
    assert sum(packed.values()) < 2_000_000
    assert (tmp_path / "ray.zip").stat().st_size < packaging.MAX_UPLOAD_BYTES
    assert {"maml_ray/cli/main.py", "pyproject.toml", "README.md", "LICENSE", "deploy.yaml"} <= set(
        packed
    )
    assert not [name for name in packed if name.startswith((".github/", ".git/", "tests/"))]
    assert not set(SECRETS) & set(packed)


def test_a_job_takes_no_secrets_along_from_a_folder_without_ignore_files(tmp_path: Path) -> None:
    others = ("tokens.py", "token.py", "environment", "deep/x.env")
    for name in (*SECRETS, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    uploaded = packaging.job_upload("", tmp_path).sizes
    assert not set(SECRETS) & set(uploaded)
    assert set(others) <= set(uploaded)


def test_a_job_s_upload_trains_by_itself_what_it_was_told(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    make_tree(tmp_path / "tree")
    own = tmp_path / "tree" / "maml_ray"
    own.mkdir()
    (own / "stale.py").write_text("")
    settings = validate_settings({"run": {"name": "packed", "directory": "/mnt/runs"}})
    files = packaging.job_upload(job_settings(settings), tmp_path / "tree")
    files.write(tmp_path / "upload.zip")
    with zipfile.ZipFile(tmp_path / "upload.zip") as archive:
        archive.extractall(tmp_path / "there")
    there = tmp_path / "there"
    sizes = {p.relative_to(there).as_posix(): p.stat().st_size for p in there.rglob("*.*")}
    assert (
        files.sizes.items()
        <= (sizes | {name: size for name, size in files.sizes.items() if "." not in name}).items()
    )
    assert load_settings(there / packaging.SETTINGS_FILE) == settings
    assert (there / "a.py").exists()
    assert not (there / "maml_ray" / "stale.py").exists()  # the package is the one that runs here
    # Not `check`, which tries the tasks: it would compile the kernels of the copy.
    program = (
        "import maml_ray.cli.main, maml_ray.runs.train\n"
        f"print(maml_ray.load_settings({packaging.SETTINGS_FILE!r}).run.name, maml_ray.__file__)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=there, env={"PATH": "/usr/bin"}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["packed", str(there / "maml_ray" / "__init__.py")]


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    files = packaging.job_upload("run: {}\n", None)
    files.write(tmp_path / "one.zip")
    (Path(maml_ray.__file__).parent / "__main__.py").touch()
    packaging.job_upload("run: {}\n", None).write(tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert not [name for name in files.sizes if "__pycache__" in name or "/docs/" in name]


def test_what_is_too_large_is_refused_with_its_largest_files(tmp_path: Path) -> None:
    with (tmp_path / "video.mp4").open("wb") as file:
        file.truncate(11_000_000)
    (tmp_path / "small.py").write_text("x")
    files = packaging.folder_upload(tmp_path)
    assert not files.is_small_enough
    with pytest.raises(UserError, match=r"11\.0 MB in 2 files.*video\.mp4 11\.0 MB.*\.rayignore"):
        packaging.check_size(files)
    packaging.check_size(packaging.job_upload("", None))


def test_counting_ends_where_it_is_far_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaging, "_MAX_FILES", 3)
    for number in range(9):
        (tmp_path / str(number)).write_text("")
    files = packaging.folder_upload(tmp_path)
    assert not files.complete
    assert not files.is_small_enough
    assert "more than" in files.describe()


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"{name} is not a folder"):
        packaging.folder_upload(tmp_path / name)
