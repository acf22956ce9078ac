"""The compiled products of affine matrices with CPU tensors (`backends/native/affine.cpp`), through ctypes."""

from __future__ import annotations

import ctypes
import logging
import time
from typing import Any

import torch

from izwi_lab.backends import native

SCALE_TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.uint8: 3}  # uint8: steps and integers
WAIT_S = 60.0  # a build takes some 10 s; a load waits for it so that the layout of the weights is chosen once
_RETRY_S = 0.5
_log = logging.getLogger(__name__)
_library: ctypes.CDLL | None = None
_kernels: ctypes.CDLL | None = None
_asked_s = float("-inf")


class Matrix(ctypes.Structure):
    """`struct Matrix` of affine.h. The tensors behind the pointers must outlive it."""

    _fields_ = (
        ("q", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("biases", ctypes.c_void_p),
        ("add", ctypes.c_void_p),
        ("rows", ctypes.c_int32),
        ("cols", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("scale_type", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    )


def library() -> ctypes.CDLL | None:
    """The compiled decoder, or None while it is being built or cannot be; asks again twice a second."""
    global _library, _asked_s
    if _library is not None:
        return _library
    if time.monotonic() - _asked_s < _RETRY_S:
        return None
    _asked_s = time.monotonic()
    found = native.library("decoder")
    if found is not None:
        found.izwi_sizeof_matrix.restype = ctypes.c_long
        if found.izwi_sizeof_matrix() != ctypes.sizeof(Matrix):
            raise RuntimeError("decoder.cpp and its Python declarations disagree on struct Matrix")
        _library = found
    return _library


def wait_for_build() -> None:
    """Wait for the decoder, WAIT_S at most, so that a model does not round otherwise once it is built."""
    global _asked_s
    if _library is None:
        native.library("decoder", wait=WAIT_S)
        _asked_s = float("-inf")


def available() -> bool:
    """True when affine matrices can be laid out for the compiled kernels. Waits for a build, WAIT_S at most."""
    global _asked_s
    if _kernels is None or _library is None:
        end_s = time.monotonic() + WAIT_S
        native.library("affine")  # both builds run at once
        for name in ("decoder", "affine"):
            native.library(name, wait=max(0.001, end_s - time.monotonic()))
        _asked_s = float("-inf")
    return library() is not None and kernels() is not None


def available_to_a_load() -> bool:
    """As `available`, asked once for a whole net; says in the log what serves instead."""
    if available():
        return True
    known = native.known()
    states = {n: known[n] for n in ("decoder", "affine") if known[n] != "compiled"}
    late = {n: f"still compiling after {WAIT_S:.0f} s" for n in states if native.status().get(n) == "building"}
    level = logging.INFO if all(s.startswith("off") for s in states.values()) and states else logging.WARNING
    _log.log(
        level,
        "The compiled kernels do not serve this model's quantised weights; packed int4 does (activations and scales "
        "in bfloat16: less accurate and slower), and blocks expanded as needed where that has no form. Why: %s. Load "
        "the model again once they are compiled; see `izwi-lab status`.",
        "; ".join(f"{n}: {s}" for n, s in {**states, **late}.items()) or "they were not ready in time",
    )
    return False


def kernels() -> ctypes.CDLL | None:
    """The compiled affine kernels, or None while they are being built or cannot be."""
    global _kernels
    if _kernels is None:
        found = native.library("affine")
        if found is not None:
            pointer, number = ctypes.c_void_p, ctypes.c_int
            for name, arguments in {
                "izwi_affine_pack": (pointer, number, number, number, pointer),
                "izwi_affine_rows": (ctypes.POINTER(Matrix), pointer, number, pointer),
                "izwi_affine_matmul": (ctypes.POINTER(Matrix), pointer, number, pointer, number),
            }.items():
                getattr(found, name).restype = None
                getattr(found, name).argtypes = arguments
            _kernels = found
    return _kernels


def affine_matrix(layer: Any, add: torch.Tensor | None = None) -> Matrix:
    """The descriptor of a matrix in panels (see `panels_torch.Panels`); add: a float32 row of biases."""
    return Matrix(
        layer.q.data_ptr(),
        layer.scales.data_ptr(),
        None if layer.biases is None else layer.biases.data_ptr(),
        None if add is None else add.data_ptr(),
        layer.rows,
        layer.cols,
        layer.bits,
        layer.group_size,
        SCALE_TYPES[layer.scales.dtype],
        0,
    )


def matmul(lib: ctypes.CDLL, matrix: Matrix, x: torch.Tensor) -> torch.Tensor:
    """X [..., cols] times the matrix: [..., rows] in the dtype of x. Activations are rounded to 16 bits in blocks."""
    wide = x.to(torch.float32).contiguous()
    out = torch.empty((*x.shape[:-1], matrix.rows), dtype=torch.float32)
    tokens = wide.numel() // matrix.cols
    if tokens:
        lib.izwi_affine_matmul(
            ctypes.byref(matrix), wide.data_ptr(), tokens, out.data_ptr(), max(1, torch.get_num_threads())
        )
    return out.to(x.dtype)


def lookup(lib: ctypes.CDLL, matrix: Matrix, ids: torch.Tensor) -> torch.Tensor:
    """Rows by number: ids [...] -> float32 [..., cols].

    Raises:
        IndexError: a number that is no row.
    """
    flat = ids.reshape(-1).to(torch.int64).contiguous()
    if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= matrix.rows):
        raise IndexError(f"ids from {int(flat.min())} to {int(flat.max())} in a table of {matrix.rows} rows")
    out = torch.empty((flat.numel(), matrix.cols), dtype=torch.float32)
    lib.izwi_affine_rows(ctypes.byref(matrix), flat.data_ptr(), flat.numel(), out.data_ptr())
    return out.view(*ids.shape, matrix.cols)
