"""Chain: the digests by which blocks of equal meaning find each other."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

DIGEST_BYTES = 32  # collisions cannot be made on purpose, so a block that matches is the same text of the same scope


@dataclass(frozen=True, slots=True)
class Scope:
    """Who may share blocks: the same model, the same tenant, the same extra key (a voice, an image)."""

    model: str = ""
    tenant: str = ""
    extra_key: bytes = b""

    def root(self) -> bytes:
        """The digest that the first block's is made from. Lengths go in too: no two scopes read the same."""
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for field in (self.model.encode(), self.tenant.encode(), self.extra_key):
            digest.update(len(field).to_bytes(8, "little"))
            digest.update(field)
        return digest.digest()


class Chain:
    """The digests of a sequence's full blocks: each is made of the one before and the ids in its block.

    So equal digests mean equal ids from the very first on. Digests are kept: a sequence's tokens only grow.
    """

    __slots__ = ("_digests", "_root", "block_size", "scope")

    def __init__(self, scope: Scope, block_size: int) -> None:
        self.scope, self.block_size = scope, block_size
        self._root = scope.root()
        self._digests: list[bytes] = []

    def digest(self, block: int, tokens: Sequence[int]) -> bytes:
        """The digest of block number `block`, which `tokens` must reach to the end of."""
        while len(self._digests) <= block:
            parent = self._digests[-1] if self._digests else self._root
            packed = pack(tokens, len(self._digests), self.block_size)
            self._digests.append(hashlib.blake2b(parent + packed, digest_size=DIGEST_BYTES).digest())
        return self._digests[block]

    def copy(self, blocks: int) -> Chain:
        """A chain of the same first `blocks` blocks, which may go on otherwise."""
        other = Chain.__new__(Chain)
        other.scope, other.block_size, other._root = self.scope, self.block_size, self._root
        other._digests = self._digests[:blocks]
        return other


def pack(tokens: Sequence[int], block: int, block_size: int) -> bytes:
    """The ids of one full block as 64-bit numbers."""
    return array("q", tokens[block * block_size : (block + 1) * block_size]).tobytes()


def unpack(packed: bytes) -> tuple[int, ...]:
    """The ids again."""
    ids = array("q")
    ids.frombytes(packed)
    return tuple(ids)
