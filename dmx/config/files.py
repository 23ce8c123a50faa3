"""Where the files lie that an experiment names."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

FILES: Final = (("cohort", "manifest"), ("stimuli", "source"), ("stimuli", "validation"), ("stimuli", "evaluation"))
"""Section and key of each."""


def with_absolute_files(raw: Mapping[str, Any], folder: Path | None, *, elsewhere: bool = True) -> dict[str, Any]:
    """Return the settings with the files that name cases and images as whole paths.

    Args:
        raw: Settings.
        folder: Where relative ones lie.
        elsewhere: Whether they may also lie in the working directory; in that of a run that could be another study's.
    """
    values = dict(raw)
    for section, key in FILES:
        given = values.get(section)
        named = given.get(key) if isinstance(given, dict) else None
        # An imported network's configuration names none.
        if folder is not None and isinstance(given, dict) and isinstance(named, str) and named:
            values[section] = {**given, key: _absolute(named, folder, elsewhere=elsewhere)}
    return values


def _absolute(named: str, folder: Path, *, elsewhere: bool) -> str:
    # The configuration that a run keeps names its files relative to the project.
    places = (folder, Path.cwd()) if elsewhere else (folder,)
    place = next((base for base in places if os.path.exists(base / named)), folder)  # noqa: PTH110
    try:
        return str((place / named).resolve())
    except (RuntimeError, ValueError, OSError):
        # Links that lead to each other, or what no path can hold: reading it will say so.
        return str(place / named)
