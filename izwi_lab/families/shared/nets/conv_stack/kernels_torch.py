"""The calls of `backends/native/kokoro.cpp` from torch: packed weights, the fused convolution, and memory for it."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn

from izwi_lab.families.shared.nets.conv_stack.torch_net import Conv1d

_POINTERS = ("x", "past", "weight", "bias", "sums", "modulation", "alpha", "inverse", "residual", "out", "out_sums")
_NUMBERS = ("c_in", "c_out", "taps", "dilation", "pad", "bf16", "accumulate", "threads")
_ALIGNMENT = 64
_PARALLEL_PRODUCTS = 4_000_000  # below this (some 20 microseconds) waking a second thread costs more than it brings
_PARALLEL_VALUES = 500_000


class _Conv(ctypes.Structure):
    """`struct Conv` of kokoro.cpp."""

    _fields_ = (
        [(n, ctypes.c_void_p) for n in _POINTERS]
        + [("t_in", ctypes.c_int64), ("t_out", ctypes.c_int64)]
        + [(n, ctypes.c_int32) for n in _NUMBERS]
        + [("slope", ctypes.c_float), ("gain", ctypes.c_float)]
    )


class Kernels:
    """The library with its signatures, and the two calls everything is made of."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.kokoro_packed_bytes.restype = ctypes.c_int64

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """weight: [Cout, Cin, K] -> bytes in the kernel's order, bfloat16 or float32 as the weight is."""
        outs, ins, taps = weight.shape
        bf16 = int(weight.dtype == torch.bfloat16)
        packed = aligned(self.library.kokoro_packed_bytes(outs, ins, taps, bf16))
        plain = weight.contiguous()
        self.library.kokoro_pack(
            pointer(plain), outs, ins, taps, bf16, pointer(packed), ctypes.c_int(torch.get_num_threads())
        )
        return packed

    def sums(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, C] -> sums and sums of squares over time, float64 [2, C]."""
        out = torch.empty(2, x.shape[1], dtype=torch.float64)
        threads = torch.get_num_threads() if x.numel() > _PARALLEL_VALUES else 1
        self.library.kokoro_sums(pointer(x), ctypes.c_int64(x.shape[0]), x.shape[1], pointer(out), threads)
        return out

    def convolve(
        self,
        x: torch.Tensor,
        conv: Packed,
        *,
        norm: tuple[torch.Tensor, torch.Tensor] | None = None,
        alpha: torch.Tensor | None = None,
        inverse: torch.Tensor | None = None,
        past: torch.Tensor | None = None,
        slope: float = 1.0,
        residual: torch.Tensor | None = None,
        gain: float = 1.0,
        out: torch.Tensor | None = None,
        accumulate: bool = False,
        sums: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x: [T, Cin] -> ([T', Cout], its sums if asked for). norm: (sums of x, gamma and beta).

        Snake: x + inverse * sin(alpha x)^2, inverse being 1 / alpha where it is not given. past: the rows before x,
        [(taps - 1) * dilation, Cin]; the convolution is then causal, T' = T.
        """
        pad, span = conv.pad, (conv.taps - 1) * conv.dilation
        frames = x.shape[0] + 2 * pad - span
        if past is not None:
            pad, frames = span, x.shape[0]
            if tuple(past.shape) != (span, conv.ins) or not past.is_contiguous():
                raise ValueError(f"convolve expects a past of [{span}, {conv.ins}], got {list(past.shape)}")
        if frames < 1 or x.shape[1] != conv.ins:
            raise ValueError(f"convolve expects [T, {conv.ins}] with enough rows for one output, got {list(x.shape)}")
        for given in (out, residual):
            if given is not None and tuple(given.shape) != (frames, conv.outs):
                raise ValueError(
                    f"convolve expects out and residual of [{frames}, {conv.outs}], got {list(given.shape)}"
                )
        out = torch.empty(frames, conv.outs) if out is None else out
        made = torch.empty(2, conv.outs, dtype=torch.float64) if sums else None
        before, modulation = norm or (None, None)
        held = (x, past, conv.weight, conv.bias, before, modulation, alpha, inverse, residual, out, made)
        call = _Conv(
            *(None if t is None else t.data_ptr() for t in held),
            x.shape[0],
            frames,
            conv.ins,
            conv.outs,
            conv.taps,
            conv.dilation,
            pad,
            int(conv.bf16),
            int(accumulate),
            torch.get_num_threads() if frames * conv.taps * conv.ins * conv.outs > _PARALLEL_PRODUCTS else 1,
            slope,
            gain,
        )
        if not x.is_contiguous() or self.library.kokoro_conv(ctypes.byref(call)):
            raise RuntimeError("the native convolution expects contiguous rows and a weight type this CPU multiplies")
        return out, made if made is not None else out


class Packed:
    """A convolution's weights in the kernel's order, with its geometry."""

    def __init__(self, kernels: Kernels, weight: torch.Tensor, bias: Any, dilation: int = 1, pad: int = 0) -> None:
        self.outs, self.ins, self.taps = weight.shape
        self.dilation, self.pad, self.bf16 = dilation, pad, weight.dtype == torch.bfloat16
        self.weight = kernels.pack(weight)
        self.bias = None if bias is None else bias.float().contiguous()

    @staticmethod
    def of(kernels: Kernels, conv: Conv1d) -> Packed:
        """Take over the weights of `conv`."""
        packed = Packed(kernels, conv.weight, conv.bias, conv.dilation[0], conv.padding[0])
        release(conv)
        return packed

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return int(self.weight.nbytes)


def release(module: nn.Module, name: str = "weight") -> None:
    """Let go of a parameter's memory; its name and shape stay for `Backend.parameters`."""
    held = getattr(module, name)
    forget_pages(held)
    setattr(module, name, nn.Parameter(torch.empty_like(held, device="meta"), requires_grad=False))


def forget_pages(tensor: torch.Tensor) -> None:
    """Drop a tensor's pages from memory if they belong to a read-only map of a file: they can be read again."""
    first = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    bytes_ = tensor.data_ptr() + tensor.nbytes - first
    if bytes_ > 0 and any(a <= first and first + bytes_ <= b for a, b in _read_only_maps()):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(bytes_), mmap.MADV_DONTNEED)


def _read_only_maps() -> list[tuple[int, int]]:
    """Address ranges of files mapped read-only into this process; empty where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    files = [line.split(maxsplit=5) for line in lines if " r--" in line and line.endswith(".safetensors")]
    return [(int(a, 16), int(b, 16)) for a, b in (fields[0].split("-") for fields in files)]


def scratch(rows: int, width: int) -> torch.Tensor:
    """Memory for one stage, float32 [rows, width], straight from the system: it goes back whole when it is dropped.

    From malloc the stages' buffers of growing size would each leave a hole behind.
    """
    return torch.frombuffer(mmap.mmap(-1, rows * width * 4), dtype=torch.float32).view(rows, width)


def aligned(count: int) -> torch.Tensor:
    """Bytes that start on a cache line."""
    memory = torch.empty(count + _ALIGNMENT, dtype=torch.uint8)
    return memory[-memory.data_ptr() % _ALIGNMENT :][:count]


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    """A tensor's address, for a call."""
    return ctypes.c_void_p(tensor.data_ptr())


class NativeLinear:
    """A linear layer as a convolution with one tap: torch's own bfloat16 product is slow for a few rows."""

    def __init__(self, kernels: Kernels, linear: nn.Linear) -> None:
        self.kernels, self.packed = kernels, Packed(kernels, linear.weight.unsqueeze(-1), linear.bias)
        release(linear)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self.packed.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [1, T, ins] -> [1, T, outs]."""
        return self.kernels.convolve(x[0].contiguous(), self.packed)[0][None]
