"""How an affine matrix lies in memory on torch: chosen once, at load, from where it runs and what it looks like."""

from __future__ import annotations

from enum import StrEnum

PANEL_GROUPS = (16, 32, 64, 128)  # what backends/native/affine.h reads; groups of 16 with 6 bits alone
INT4_GROUPS = (32, 64, 128, 256)  # what torch's packed int4 kernels take, on both devices
CUDA_COLUMNS = 128  # 16 columns of a tensor-core tile times inner_k_tiles = 8
CUDA_ROWS = 8
CUDA_CAPABILITY = (8, 0)


class Form(StrEnum):
    """PANELS: our compiled CPU kernels. INT4_CPU, INT4_CUDA: torch's packed int4. ROWS: expanded block by block."""

    PANELS = "panels"
    INT4_CPU = "int4_cpu"
    INT4_CUDA = "int4_cuda"
    ROWS = "rows"


def form_for(
    device: str,
    dtype: str,
    shape: tuple[int, ...],
    bits: int,
    group_size: int,
    *,
    native: bool = False,
    capability: tuple[int, int] | None = None,
) -> Form:
    """The fastest form that can hold a matrix.

    Args:
        device: "cpu", "cuda:0", "mps".
        dtype: the compute dtype, such as "bfloat16".
        shape: [rows, cols] of the matrix.
        bits: 4, 5, 6 or 8. Torch's kernels take 4; on the CPU wider codes are two products of 4 bits.
        group_size: columns that share a scale.
        native: the compiled kernels are there.
        capability: of the CUDA device.
    """
    rows, cols = shape
    whole = group_size in INT4_GROUPS and cols % group_size == 0
    if device == "cpu":
        if native and group_size in PANEL_GROUPS and cols % 32 == 0 and (group_size != 16 or bits == 6):
            return Form.PANELS
        return Form.INT4_CPU if whole else Form.ROWS
    if not device.startswith("cuda") or capability is None or capability < CUDA_CAPABILITY:
        return Form.ROWS
    fits = whole and bits == 4 and cols % CUDA_COLUMNS == 0 and rows % CUDA_ROWS == 0
    return Form.INT4_CUDA if fits and dtype == "bfloat16" else Form.ROWS
