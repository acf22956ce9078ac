"""What stands in a model's place for its net once it is closed: every use says so."""

from __future__ import annotations

from typing import Any, NoReturn

from izwi_lab.errors import InvalidInputError


class ClosedNet:
    """A net without weights."""

    def __init__(self, model: str) -> None:
        self._model = model

    def nbytes(self) -> int:
        """No bytes are held."""
        return 0

    def __getattr__(self, name: str) -> NoReturn:
        raise InvalidInputError(f"{self._model} was closed.", hint="Load it again.")

    def __call__(self, *arrays: Any) -> NoReturn:
        """Every pass is refused."""
        raise InvalidInputError(f"{self._model} was closed.", hint="Load it again.")
