"""The compiled products of affine matrices with CPU tensors (`backends/native/decoder.cpp`), through ctypes."""

from __future__ import annotations

import ctypes
import time
from typing import Any

import torch

from izwi_lab.backends import native

SCALE_TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
_RETRY_S = 0.5
_library: ctypes.CDLL | None = None
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
    """The compiled library, or None while it is being built or cannot be; asks again twice a second."""
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
        found.izwi_affine_matmul.restype = None
        found.izwi_affine_matmul.argtypes = (
            ctypes.POINTER(Matrix),
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_int,
        )
        _library = found
    return _library


def affine_matrix(layer: Any, add: torch.Tensor | None = None) -> Matrix:
    """The descriptor of an affine layer (see `torch_net.Affine`); add: a float32 row of biases."""
    return Matrix(
        layer.q.data_ptr(),
        layer.scales.data_ptr(),
        layer.biases.data_ptr(),
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
