"""Whether an error means that a device, or the machine, has no memory left for what was asked."""

from __future__ import annotations

_SAYINGS = ("out of memory", "can't allocate memory", "unable to allocate", "failed to allocate")


def is_out_of_memory(error: BaseException) -> bool:
    """True for MemoryError and for the RuntimeErrors of torch and MLX that say so, each in its own words."""
    if isinstance(error, MemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in _SAYINGS)
