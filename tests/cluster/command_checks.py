"""Check that a command is accepted by its program, by the program's own parser if it has one."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click
import typer
from pip._internal.commands import create_command
from ray.scripts.scripts import cli as ray_cli

from maml_ray.cli.main import app
from maml_ray.config.loading import load_settings
from maml_ray.config.presets import PRESETS
from tests.cluster.commands import Command, in_line
from tests.cluster.files import CLUSTER, ROOT, load, pin
from tests.cluster.kubernetes import KUBERNETES

SECRET = re.compile(r"secretKeyRef: {name: (\S+), key: (\S+)}")
SECRET_FILE = re.compile(r"secret: {secretName: (\S+),")
SETTINGS_FILES = (Path("deploy.yaml"), Path("/etc/maml-ray/deploy.yaml"))


def program(command: Command) -> str:
    return Path(command.words[0]).name


def check_maml_ray(arguments: list[str], settings_files: Collection[Path] = SETTINGS_FILES) -> None:
    """Check by the command line's own parser, and its overrides by the settings."""
    group: Any = typer.main.get_command(app)  # Typer's subclass of click's
    name, *rest = arguments
    command = group.commands.get(name)
    assert command is not None, f"there is no maml-ray {name}"
    context = command.make_context(name, list(rest))
    assert context.params.get("settings_file") in (None, *settings_files)
    assert context.params.get("preset") in (None, *PRESETS)
    overrides = context.params.get("overrides") or ()
    real = [
        re.sub(r"\$\w+$", "from-the-environment", override)
        for override in overrides
        if override != "key.path=value"
    ]
    load_settings(ROOT / "deploy.yaml", overrides=real)


def check_ray(arguments: list[str]) -> None:
    """Check by Ray's own parser, including the command that a job or node is to run."""
    command: click.Command = ray_cli
    while isinstance(command, click.Group):
        name, *arguments = arguments
        assert name in command.commands, f"there is no ray {name}"
        command = command.commands[name]
    if "--" in arguments:
        where = arguments.index("--")
        check_maml_ray(arguments[where + 2 :])
    command.make_context(str(command.name), list(arguments))
    if command.name == "exec":
        (remote,) = in_line(arguments[-1], "ray exec")
        assert program(remote) == "maml-ray"
        check_maml_ray(list(remote.words[1:]))


def check_make(arguments: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert arguments[0] in targets


def check_pip(arguments: list[str]) -> None:
    name, *rest = arguments
    create_command(name).parse_args(rest)


def check_docker(arguments: list[str]) -> None:
    """Check that images are built, pushed and looked up under the names that the manifests have."""
    component = load(KUBERNETES / "images" / "kustomization.yaml")
    repository = {each["name"]: each["newName"] for each in component["images"]}["maml-ray-cpu"]
    tags = {f"{pin('ray')}-{device}": device for device in ("cpu", "gpu")}
    images = {f"{repository}:{tag}" for tag in tags}
    bases = re.findall(r"^FROM ([^\s@]+)", (CLUSTER / "Dockerfile").read_text("utf-8"), re.M)
    name, *rest = arguments
    if name == "push":
        assert rest == [rest[0]]
        assert rest[0] in images
        return
    if name == "buildx":
        assert rest[:-1] == ["imagetools", "inspect"]
        assert rest[-1] in images.union(bases)
        return
    assert name == "build"
    options = dict(zip(rest[::2], rest[1::2], strict=False))
    assert set(options) == {"-f", "--build-arg", "-t", "."} - {"."}
    assert rest[-1] == "."
    dockerfile = (ROOT / options["-f"]).read_text(encoding="utf-8")
    argument, value = options["--build-arg"].split("=")
    assert re.search(rf"^ARG {argument}=", dockerfile, re.M)
    assert re.search(rf"^FROM .* AS \w+-{value}$", dockerfile, re.M)
    host = repository.rpartition("/")[0]
    tag = options["-t"].removeprefix(f"{host}/")
    assert f"{host}/{tag}" in images
    assert tag.endswith(f"-{value}")


def check_kubectl(arguments: list[str]) -> None:
    """Check that files exist, and that services and jobs are those of the manifests."""
    known = ("apply", "create", "delete", "kustomize", "label", "logs", "port-forward")
    assert arguments[0] in known
    check_files(arguments)
    names = {
        found["kind"]: found["metadata"]["name"]
        for found in map(load, KUBERNETES.glob("*/*.yaml"))
        if "metadata" in found
    }
    services = {
        f"{names['RayCluster']}-head-svc",
        f"{names['RayService']}-serve-svc",
        names["Deployment"],  # whose service has its name
    }
    if "-k" in arguments:
        folder = ROOT / arguments[arguments.index("-k") + 1]
        assert load(folder / "kustomization.yaml")["kind"] == "Kustomization"
    for word in arguments:
        if word.startswith("service/"):
            assert word.removeprefix("service/") in services
        if word.startswith("job-name="):
            assert word == f"job-name={names['RayJob']}"
    if arguments[:3] == ["create", "secret", "generic"]:
        assert (arguments[3], arguments[4].split("=")[1]) in secrets()


def secrets() -> set[tuple[str, str]]:
    """Return names and keys of the secrets in the manifests; KubeRay reads ``auth_token``."""
    texts = [path.read_text(encoding="utf-8") for path in KUBERNETES.glob("*/*.yaml")]
    found = {pair for text in texts for pair in SECRET.findall(text)}
    found |= {(name, "token") for text in texts for name in SECRET_FILE.findall(text)}
    cluster = load(KUBERNETES / "raycluster" / "raycluster.yaml")["spec"]
    return found | {(cluster["authOptions"]["secretName"], "auth_token")}


def check_files(arguments: list[str]) -> None:
    """Check that paths within the repository exist."""
    for word in arguments:
        path = word.removeprefix("--from-file=").removeprefix("--config.file=")
        if path.startswith("cluster/") or path.endswith("deploy.yaml"):
            assert (ROOT / path).exists(), f"there is no {path}"


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "maml-ray": check_maml_ray,
    "ray": check_ray,
    "make": check_make,
    "pip": check_pip,
    "docker": check_docker,
    "kubectl": check_kubectl,
    "cp": check_files,
    "prometheus": check_files,
    "sed": check_files,
    "export": lambda arguments: None,
}
