"""Package what a job uploads: maml_ray, the settings and the user's working directory.

Ray keeps uploads in the memory of the cluster's head and copies them to every node, so they must
be small: sources, not data.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import maml_ray
from maml_ray.common.errors import UserError
from maml_ray.runtime.ray_internals import for_each_uploaded_path

MAX_UPLOAD_BYTES = 10_000_000
"""Limit of an upload; Ray's own is ten times as high."""
SETTINGS_FILE = "maml_ray_settings.yaml"
"""Name of the settings in an upload."""
_NOT_UPLOADED = frozenset({"__pycache__", "docs", "cluster"})
"""Folders of the package that no job needs."""
_SECRETS = re.compile(r"(.*/)?(token|\.env(\..*)?)")
"""Files that no job needs, and that everybody who can reach the cluster could read."""
_MAX_FILES = 20_000
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


class _TooManyFiles(Exception):
    pass


@dataclass(frozen=True)
class Upload:
    """Files to upload.

    Attributes:
        files: local path of each file, by its name in the upload.
        texts: content of generated files, by name.
        sizes: bytes of all files, by name.
        complete: False if there are too many files to list.
    """

    files: Mapping[str, Path]
    texts: Mapping[str, str]
    sizes: Mapping[str, int]
    complete: bool = True

    @property
    def size(self) -> int:
        """Total bytes."""
        return sum(self.sizes.values())

    @property
    def is_small_enough(self) -> bool:
        """Whether the upload is within ``MAX_UPLOAD_BYTES``."""
        return self.complete and self.size <= MAX_UPLOAD_BYTES

    def describe(self) -> str:
        """Return the size and the three largest files as text."""
        largest = sorted(self.sizes.items(), key=lambda item: (-item[1], item[0]))[:3]
        names = ", ".join(f"{name} {format_size(size)}" for name, size in largest)
        more = "" if self.complete else "more than "
        return f"{more}{format_size(self.size)} in {len(self.sizes)} files, the largest: {names}"

    def write(self, path: Path) -> None:
        """Write a zip file with the same bytes for the same files, so that Ray uploads it once."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(self.sizes):
                content = self.texts[name] if name in self.texts else self.files[name].read_bytes()
                archive.writestr(zipfile.ZipInfo(name, _FIXED_TIME), content)


def format_size(size: int) -> str:
    """Return ``size`` in bytes as kB or MB."""
    return f"{size / 1e6:.1f} MB" if size >= 50_000 else f"{size / 1e3:.1f} kB"


def folder_upload(folder: Path) -> Upload:
    """Return the files that Ray would upload from ``folder``, without those in its ignore files.

    Raises:
        UserError: ``folder`` is no directory, or cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"--working-dir {folder} is not a folder")
    files: dict[str, Path] = {}
    root = folder.absolute()

    def visit(path: Path) -> None:
        if path.is_file():
            files[path.relative_to(root).as_posix()] = path
            if len(files) > _MAX_FILES:
                raise _TooManyFiles

    complete = True
    try:
        for_each_uploaded_path(root, visit)
    except _TooManyFiles:
        complete = False
    except OSError as error:
        raise UserError(f"--working-dir {folder} cannot be read: {error}") from None
    return Upload(files, {}, {name: path.stat().st_size for name, path in files.items()}, complete)


def job_upload(settings_text: str, working_dir: Path | None) -> Upload:
    """Return all files that a job needs, except for its requirements.

    The imported maml_ray package replaces any copy in the working directory, such as a clone's.
    Files named ``token`` or ``.env`` are left out even if no ignore file names them.

    Raises:
        UserError: the working directory cannot be read.
    """
    package = Path(maml_ray.__file__).parent
    own = folder_upload(working_dir) if working_dir is not None else Upload({}, {}, {})
    files = {
        name: path
        for name, path in own.files.items()
        if not name.startswith("maml_ray/") and not _SECRETS.fullmatch(name)
    }
    files |= {
        f"maml_ray/{path.relative_to(package).as_posix()}": path
        for path in package.rglob("*")
        if path.is_file() and _NOT_UPLOADED.isdisjoint(path.relative_to(package).parts)
    }
    files.pop(SETTINGS_FILE, None)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    sizes[SETTINGS_FILE] = len(settings_text.encode())
    return Upload(files, {SETTINGS_FILE: settings_text}, sizes, own.complete)


def check_size(upload: Upload) -> None:
    """Reject an upload that is too large.

    Raises:
        UserError: it exceeds ``MAX_UPLOAD_BYTES``; the message names the largest files.
    """
    if not upload.is_small_enough:
        raise UserError(
            f"the upload is {upload.describe()}; the limit is {format_size(MAX_UPLOAD_BYTES)}: "
            "list what the job does not need in .rayignore, with the syntax of .gitignore"
        )
