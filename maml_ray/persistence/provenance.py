"""Record where, when and with which code a run was trained, for its report."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maml_ray.common.safe_files import UnreadableFile, append_text, read_text
from maml_ray.common.versions import versions
from maml_ray.persistence.run_dir import RunDir

_MAX_BYTES = 1_000_000
_GIT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Provenance:
    """Origin of one attempt at a run: one process that trained it.

    Attributes:
        started: date and time with its offset from UTC.
        host: name of the machine that drove training.
        machine: its processor, number of CPUs and memory.
        commit: Git commit of the source tree that maml_ray was imported from, else of the current
            directory; ``-dirty`` follows if files differ from it; None without Git.
        versions: version of each package that results depend on.
    """

    started: str
    host: str
    machine: str
    commit: str | None
    versions: dict[str, str]


def current_provenance() -> Provenance:
    """Return the provenance of a process that starts training now."""
    return Provenance(
        started=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        host=socket.gethostname(),
        machine=_describe_machine(),
        commit=_find_commit(),
        versions=versions(),
    )


def record_provenance(run_dir: RunDir) -> None:
    """Append the provenance of this process to the run directory, if it can be written."""
    line = f"{json.dumps(asdict(current_provenance()))}\n"
    # Training does not depend on it, so a full disk is no reason to stop.
    with suppress(OSError):
        append_text(run_dir.provenance, line)


def read_provenance(run_dir: RunDir) -> list[Provenance]:
    """Return the provenance of each attempt, oldest first; none for runs of older versions.

    Lines that cannot be read are left out.
    """
    try:
        lines = read_text(run_dir.provenance, max_bytes=_MAX_BYTES).splitlines()
    except UnreadableFile:
        return []
    return [provenance for line in lines if (provenance := _parse(line)) is not None]


def _parse(line: str) -> Provenance | None:
    data: Any = None
    with suppress(ValueError, RecursionError):
        data = json.loads(line)
    if not isinstance(data, dict):
        return None
    fields: dict[str, Any] = {name: data.get(name) for name in Provenance.__dataclass_fields__}
    packages, commit = fields.pop("versions"), fields.pop("commit")
    is_valid = all(isinstance(value, str) for value in fields.values())
    if not is_valid or not isinstance(packages, dict) or not isinstance(commit, str | None):
        return None
    return Provenance(
        **fields, commit=commit, versions={str(k): str(v) for k, v in packages.items()}
    )


def _describe_machine() -> str:
    model = platform.processor() or platform.machine()
    with suppress(OSError):  # only Linux has the file
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    parts = [model, f"{os.cpu_count()} CPUs"]
    with suppress(OSError, ValueError, AttributeError):  # Windows
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        parts.append(f"{memory / 2**30:.0f} GiB")
    return ", ".join(parts)


def _find_commit() -> str | None:
    source = Path(__file__).parents[2]
    folder = source if (source / ".git").exists() else Path.cwd()
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, timeout=_GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    commit = result.stdout.decode(errors="replace").strip()
    return commit if result.returncode == 0 and commit else None
