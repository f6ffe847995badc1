"""What a job sends to the cluster: this package, the settings, and a folder of one's own.

Ray keeps uploads in the memory of the cluster's head and copies them to every node, so they are to
be small: sources, not data.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import maml_ray
from maml_ray.common.errors import UserError
from maml_ray.runtime.ray_internals import for_each_uploaded_path

LARGEST_BYTES = 10_000_000
"""Of an upload; Ray itself takes ten times as much."""
SETTINGS = "maml_ray_settings.yaml"
"""Where the settings lie in an upload."""
_MOST_FILES = 20_000
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


class _TooMany(Exception):
    """More than is worth counting."""


@dataclass(frozen=True)
class Upload:
    """Files to send.

    Attributes:
        files: where each lies here, by its name over there.
        texts: what is made for the job, by name.
        sizes: bytes of each, by name.
        complete: False where counting was given up: it is far too much.
    """

    files: Mapping[str, Path]
    texts: Mapping[str, str]
    sizes: Mapping[str, int]
    complete: bool = True

    @property
    def size(self) -> int:
        """Bytes, all told."""
        return sum(self.sizes.values())

    def largest(self, count: int = 3) -> list[tuple[str, int]]:
        """The largest files, name and bytes."""
        return sorted(self.sizes.items(), key=lambda item: (-item[1], item[0]))[:count]

    def describe(self) -> str:
        """Its size and its largest files, for people."""
        names = ", ".join(f"{name} {megabytes(size)}" for name, size in self.largest())
        more = "" if self.complete else "more than "
        return f"{more}{megabytes(self.size)} in {len(self.sizes)} files, the largest: {names}"

    def write(self, path: Path) -> None:
        """Into a zip file: the same files give the same bytes, which Ray takes once."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(self.sizes):
                content = self.texts[name] if name in self.texts else self.files[name].read_bytes()
                archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), content)


def megabytes(size: int) -> str:
    """``size`` in bytes, for people."""
    return f"{size / 1e6:.1f} MB" if size >= 50_000 else f"{size / 1e3:.1f} kB"


def of_folder(folder: Path) -> Upload:
    """What Ray would send of ``folder``: all but what .gitignore and .rayignore there name.

    Raises:
        UserError: it is no folder, or cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"--working-dir {folder} is not a folder")
    files: dict[str, Path] = {}
    root = folder.absolute()

    def note(path: Path) -> None:
        if path.is_file():
            files[path.relative_to(root).as_posix()] = path
            if len(files) > _MOST_FILES:
                raise _TooMany

    complete = True
    try:
        for_each_uploaded_path(root, note)
    except _TooMany:
        complete = False
    except OSError as error:
        raise UserError(f"--working-dir {folder} cannot be read: {error}") from None
    return Upload(files, {}, {name: path.stat().st_size for name, path in files.items()}, complete)


def of_job(settings_text: str, working_dir: Path | None) -> Upload:
    """Everything that a run needs but its requirements.

    The package is the one that is imported here; where the working folder has a copy of its own,
    as a clone does, it is the same or it is left out.

    Raises:
        UserError: the working folder cannot be read.
    """
    package = Path(maml_ray.__file__).parent
    own = of_folder(working_dir) if working_dir is not None else Upload({}, {}, {})
    theirs = {name: path for name, path in own.files.items() if not name.startswith("maml_ray/")}
    files = theirs | {
        f"maml_ray/{path.relative_to(package).as_posix()}": path
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    files.pop(SETTINGS, None)
    sizes = {name: path.stat().st_size for name, path in files.items()}
    sizes[SETTINGS] = len(settings_text.encode())
    return Upload(files, {SETTINGS: settings_text}, sizes, own.complete)


def fits(upload: Upload) -> bool:
    """Whether it is small enough to send."""
    return upload.complete and upload.size <= LARGEST_BYTES


def check_size(upload: Upload) -> None:
    """Refuse to send a folder of data.

    Raises:
        UserError: it is too large; the sentence names the largest files.
    """
    if not fits(upload):
        raise UserError(
            f"the upload is {upload.describe()}; at most {megabytes(LARGEST_BYTES)} are sent: "
            "name what a job does not need in .rayignore, a line each as in .gitignore"
        )
