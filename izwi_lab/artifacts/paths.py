"""Where things are on this machine: the models folder, the package cache, and what is one model's own."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from izwi_lab import settings
from izwi_lab.errors import InvalidInputError

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def models_dir() -> Path:
    """IZWI_MODELS_DIR, else the configuration file's, else izwi/models in the user data folder. Not created here."""
    chosen = settings.load().models_dir
    return chosen.absolute() if chosen else _user_folder("data") / "izwi" / "models"


def package_cache() -> Path:
    """Where downloaded packages are kept: IZWI_PACKAGE_CACHE, else izwi/packages in the user cache folder."""
    chosen = os.environ.get("IZWI_PACKAGE_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else _user_folder("cache") / "izwi" / "packages"


def model_folder(model_id: str, root: Path | None = None) -> Path:
    """The folder of one model under `root` (default: models_dir()).

    Raises:
        InvalidInputError: an id that is not a plain folder name.
    """
    if not _PLAIN_NAME.fullmatch(model_id) or ".." in model_id:
        raise InvalidInputError(
            f"{model_id!r} cannot be a folder name.", hint="Ids are letters, digits, dot, dash and underscore."
        )
    return (root or models_dir()) / model_id


def _user_folder(kind: str) -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / ("Caches" if kind == "cache" else "Application Support")
    variable, default = ("XDG_CACHE_HOME", ".cache") if kind == "cache" else ("XDG_DATA_HOME", ".local/share")
    chosen = os.environ.get(variable, "")
    return Path(chosen) if Path(chosen).is_absolute() else Path.home() / default
