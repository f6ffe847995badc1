"""Define the presets: named settings that a settings file and the command line override."""

from __future__ import annotations

from collections.abc import Mapping

from maml_ray.config.presets.preset import Preset
from maml_ray.config.presets.published import PUBLISHED
from maml_ray.config.presets.trained import TRAINED

PRESETS: Mapping[str, Preset] = {**TRAINED, **PUBLISHED}
"""Presets by name; durations over half an hour are estimates."""

__all__ = ("PRESETS", "Preset")
