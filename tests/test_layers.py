"""Imports run one way down a list of packages, and each package knows only what its layer may."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import maml_ray

ROOT = Path(maml_ray.__file__).parent

LAYERS = (
    "common",
    "config",
    "kernels",
    "policies",
    "envs",
    "tasks",
    "rollouts",
    "maml",
    "backends",
    "learning",
    "persistence",
    "evaluation",
    "reporting",
    "runtime",
    "monitoring",
    "runs",
    "serving",
    "jobs",
    "cli",
)
"""From the ground up: a package imports from those before it, never from those behind it."""

FIRST_LAYER_WITH = {"torch": "maml", "ray": "runtime"}
"""The lowest package that may import a library."""
MODULES_PER_PACKAGE = 12
MODULES_IN_ROOT = 5


class Import(NamedTuple):
    """``module`` as imported by the file ``source``, a path within the package, at ``line``."""

    source: Path
    line: int
    module: str

    @property
    def layer(self) -> str:
        return self.source.parts[0]


def imports_of(source: Path) -> Iterator[Import]:
    """Every import of a file: those in functions and for type checkers too."""
    inside = source.relative_to(ROOT)
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(inside, node.lineno, name.name)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{inside}:{node.lineno}: write the absolute import"
            for name in node.names:
                yield Import(inside, node.lineno, f"{node.module}.{name.name}")


def all_imports() -> list[Import]:
    return [found for source in sorted(ROOT.rglob("*.py")) for found in imports_of(source)]


def violation(found: Import) -> str | None:
    """One sentence about an import that points up or comes too early; None for a good one."""
    if found.layer not in LAYERS:  # the root: the public names and ``python -m maml_ray``
        return None
    place = f"{found.source}:{found.line}: the layer '{found.layer}'"
    library, *rest = found.module.split(".")
    if library == "maml_ray" and rest and rest[0] in LAYERS:
        if LAYERS.index(rest[0]) > LAYERS.index(found.layer):
            return f"{place} imports {found.module}, of the higher layer '{rest[0]}'"
    elif library in FIRST_LAYER_WITH:
        first = FIRST_LAYER_WITH[library]
        if LAYERS.index(found.layer) < LAYERS.index(first):
            return f"{place} imports {library}, which is for '{first}' and the layers above it"
    return None


def test_imports_run_one_way() -> None:
    violations = [found for found in map(violation, all_imports()) if found]
    assert not violations, "\n".join(violations)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("maml_ray.runs.train", "imports maml_ray.runs.train, of the higher layer 'runs'"),
        ("torch.nn", "imports torch, which is for 'maml' and the layers above it"),
        ("ray", "imports ray, which is for 'runtime' and the layers above it"),
        ("maml_ray.common.errors", None),
        ("numpy", None),
    ],
)
def test_a_violation_names_the_layer(module: str, message: str | None) -> None:
    found = violation(Import(Path("policies/spec.py"), 7, module))
    assert found == (message and f"policies/spec.py:7: the layer 'policies' {message}")


def test_every_package_has_a_layer_and_few_modules() -> None:
    packages = {source.parent for source in ROOT.rglob("*.py")} - {ROOT}
    assert {package.relative_to(ROOT).parts[0] for package in packages} == set(LAYERS)
    sizes = {
        str(package.relative_to(ROOT)): len(list(package.glob("*.py"))) - 1 for package in packages
    }
    crowded = {name: size for name, size in sizes.items() if size > MODULES_PER_PACKAGE}
    assert not crowded, f"more than {MODULES_PER_PACKAGE} modules: {crowded}"
    assert len(list(ROOT.glob("*.py"))) <= MODULES_IN_ROOT


def test_tests_mirror_the_packages() -> None:
    mirrored = {folder.name for folder in Path(__file__).parent.iterdir() if folder.is_dir()}
    missing = set(LAYERS) - mirrored
    assert not missing, f"no folder of tests for {sorted(missing)}"
