"""Add a page of the Python API to the site: every public name, from its docstring."""

from __future__ import annotations

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import maml_ray


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add ``api/index.md``; the MkDocs hook of this name."""
    names = "\n\n".join(f"::: maml_ray.{name}" for name in maml_ray.__all__)
    page = f"# Python API\n\nAll public names of `maml_ray`, from their docstrings.\n\n{names}\n"
    files.append(File.generated(config, "api/index.md", content=page))
    return files
