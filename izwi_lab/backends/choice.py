"""What a caller asks of the router, parsed: "torch", "mlx:gpu", "cuda:1", a device, a dtype; and who asked for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from izwi_lab.backends.detect import Device
from izwi_lab.errors import InvalidInputError
from izwi_lab.settings import Settings

DTYPES = ("float32", "bfloat16", "float16")


class ExecutionBackend(StrEnum):
    """The frameworks a model can run on."""

    TORCH = "torch"
    MLX = "mlx"


_DEVICE_NAMES = {"cpu": "cpu", "cuda": "cuda", "mps": "mps", "metal": "mps", "gpu": "gpu"}
_ACCEPTED = "auto, torch, mlx, cpu, cuda, cuda:0, mps, gpu, or both as in torch:cuda:0 and mlx:gpu"
_CUDA = re.compile(r"cuda(?::(\d{1,3}))?")


@dataclass(frozen=True, slots=True)
class Choice:
    """A wish for a backend and a device, either of which may be open (None). source: who made it, for the reason.

    binding: made by the caller of this very request, so it is that or an error.
    """

    backend: ExecutionBackend | None = None
    device: str | None = None
    source: str = "detection"
    binding: bool = False

    @property
    def open(self) -> bool:
        """Whether nothing was wished for."""
        return self.backend is None and self.device is None

    def matches(self, backend: str, device: str, kind: str) -> bool:
        """Whether a device is one that was wished for. "gpu" is any accelerator, "cuda" any CUDA device."""
        if self.backend is not None and self.backend != backend:
            return False
        return self.device is None or self.device in (device, kind) or (self.device == "gpu" and kind != "cpu")

    def accepts(self, device: Device) -> bool:
        """`matches` for a device that was found."""
        return self.matches(device.backend, device.name, device.kind)

    def __str__(self) -> str:
        return ":".join(part for part in (self.backend, self.device) if part) or "auto"


def read_choice(backend: str | None, device: str | None, source: str, *, binding: bool = False) -> Choice:
    """The wish in a backend word and a device word, such as ("mlx:gpu", None) or ("torch", "cuda:1").

    Raises:
        InvalidInputError: a word that means neither, or two devices that contradict each other.
    """
    named, within = _split(backend, source)
    other = _device(device, source) if device is not None else None
    if within and other and within != other:
        raise InvalidInputError(f"{source} asks for two devices, {within} and {other}.", hint="Name one.")
    return Choice(named, other or within, source, binding)


def choose(settings: Settings, backend: str | None, device: str | None) -> Choice:
    """The wish that counts: the arguments, else the environment, else the configuration file, else none.

    "auto" as an argument is no wish: the settings decide. A device argument alone leaves the backend open.
    """
    if backend is not None and backend.strip().lower() != "auto":
        return read_choice(backend, device, "the argument", binding=True)
    if device is not None:
        return read_choice(None, device, "the argument", binding=True)
    if settings.backend is not None:
        source = settings.sources.get("backend", "the settings")
        choice = read_choice(settings.backend, settings.device, source)
        if choice.backend == ExecutionBackend.MLX and settings.mlx is False and source == "IZWI_BACKEND":
            raise InvalidInputError(
                "IZWI_BACKEND asks for MLX and IZWI_ENABLE_MLX_RUNTIME forbids it.", hint="Unset one of them."
            )
        return choice
    if settings.device is not None:
        return read_choice(None, settings.device, settings.sources.get("device", "the settings"))
    return Choice()


def check_dtype(dtype: str, source: str) -> str:
    """The dtype, or InvalidInputError naming the ones there are."""
    if dtype not in DTYPES:
        raise InvalidInputError(f"{source} asks for dtype {dtype!r}.", hint=f"Choose one of {', '.join(DTYPES)}.")
    return dtype


def _split(text: str | None, source: str) -> tuple[ExecutionBackend | None, str | None]:
    word = (text or "auto").strip().lower()
    if word == "auto":
        return None, None
    head, _, tail = word.partition(":")
    if head in set(ExecutionBackend):
        return ExecutionBackend(head), _device(tail, source) if tail else None
    return None, _device(word, source)


def _device(text: str, source: str) -> str:
    word = text.strip().lower()
    if match := _CUDA.fullmatch(word):
        return word if match[1] is None else f"cuda:{int(match[1])}"
    if word not in _DEVICE_NAMES:
        raise InvalidInputError(f"{source} asks for {text!r}, which is no backend or device.", hint=f"Use {_ACCEPTED}.")
    return _DEVICE_NAMES[word]
