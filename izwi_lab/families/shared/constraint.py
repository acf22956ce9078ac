"""What may come next: the role of a grammar in the loop of a text model."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Constraint(Protocol):
    """Follows an answer token by token. One object serves one answer.

    `sample` gets its mask, the loop tells it each token, and ends the answer once it is finished.
    """

    @property
    def finished(self) -> bool:
        """True when the text is complete and nothing more may follow."""

    def mask(self) -> np.ndarray | None:
        """Which tokens may come next: int32 [ceil(V / 32)], bit t % 32 of word t // 32; None for all.

        Raises:
            InvalidInputError: no token may come; the text so far cannot be completed.
        """

    def accept(self, token: int) -> None:
        """Take `token` as said."""
