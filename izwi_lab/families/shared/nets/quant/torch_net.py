"""Affine layers on torch: codes stay packed in memory, in the form that suits where they run (see layout.py)."""

from __future__ import annotations

import torch
from torch import nn

from izwi_lab.artifacts.tensors import AffineRows, AffineTensor
from izwi_lab.backends.loading import Unread
from izwi_lab.errors import CheckpointError
from izwi_lab.families.shared.nets.quant import native_torch
from izwi_lab.families.shared.nets.quant.layout import Form, form_for
from izwi_lab.families.shared.nets.quant.packed_torch import PackedCPU, cuda_form
from izwi_lab.families.shared.nets.quant.panels_torch import Panels
from izwi_lab.families.shared.nets.quant.rows_torch import Rows


class Affine(nn.Module):
    """A matrix [rows, cols]: w = code * scale + bias, in groups of `group_size` along a row. held: its form.

    native: whether the compiled CPU kernels are there; None asks, and waits for them.
    """

    def __init__(
        self,
        weight: AffineTensor | AffineRows,
        device: str,
        dtype: torch.dtype,
        *,
        rows_too: bool = False,
        native: bool | None = None,
    ):
        super().__init__()
        self.rows, self.cols = weight.shape
        self.bits, self.group_size = weight.bits, weight.group_size
        form = form_for(
            device,
            str(dtype).removeprefix("torch."),
            weight.shape,
            weight.bits,
            weight.group_size,
            native=device == "cpu" and (native_torch.available() if native is None else native),
            capability=torch.cuda.get_device_capability(device) if device.startswith("cuda") else None,
        )
        if form == Form.PANELS:
            self.held = Panels(weight)
        elif form == Form.ROWS or rows_too:
            self.held = Rows(weight.whole(), device)
        else:
            self.held = PackedCPU(weight.whole()) if form == Form.INT4_CPU else cuda_form(weight.whole(), device)
        self.form = form

    @property
    def panelled(self) -> bool:
        """True where the compiled kernels serve this matrix."""
        return self.form == Form.PANELS

    def matrix(self, add: torch.Tensor | None = None) -> native_torch.Matrix:
        """The descriptor for the compiled kernels; only where `panelled`."""
        return self.held.descriptor(add)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., cols] -> [..., rows]."""
        return self.held.product(x)


class AffineLinear(Affine):
    """In the place of nn.Linear."""

    def __init__(
        self,
        weight: AffineTensor | AffineRows,
        device: str,
        dtype: torch.dtype,
        bias: nn.Parameter | None,
        *,
        native: bool | None = None,
    ):
        super().__init__(weight, device, dtype, native=native)
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        y = self.product(x)
        return y if self.bias is None else y + self.bias


class AffineEmbedding(Affine):
    """In the place of nn.Embedding; `as_linear` is the tied output head.

    Torch's packed forms give no rows: there the codes are held by row, and packed once more when a head is asked for.
    """

    def __init__(
        self, weight: AffineTensor | AffineRows, device: str, dtype: torch.dtype, *, native: bool | None = None
    ):
        super().__init__(weight, device, dtype, rows_too=True, native=native)
        self.dtype = dtype
        self.head = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.held.lookup(ids, self.dtype)

    def as_linear(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., cols] -> [..., rows]."""
        if self.head is None:
            packs = {Form.INT4_CPU: PackedCPU, Form.INT4_CUDA: lambda w: cuda_form(w, str(x.device))}
            self.head = packs[self.form](self.held.tensor()) if self.form in packs else self.held
        return self.head.product(x)


def use_affine(net: nn.Module, affine: Unread, backend) -> None:
    """Put affine layers where `affine` has a weight "<module>.weight"; entries are consumed, to free them early."""
    # Once for the whole net: a build that ends meanwhile must not give it two forms, nor one that hangs be waited for
    # at every layer.
    native = backend.device == "cpu" and len(affine) > 0 and native_torch.available_to_a_load()
    for name in list(affine):
        path, _, leaf = name.rpartition(".")
        owner, _, child = path.rpartition(".")
        parent = net.get_submodule(owner) if path and _has(net, path) else None
        old = getattr(parent, child, None)
        if leaf != "weight" or not isinstance(old, (nn.Linear, nn.Embedding)):
            raise CheckpointError(f"{name} is quantised, but the net has no Linear or Embedding of that name.")
        weight = affine.pop_rows(name)
        if weight.shape != tuple(old.weight.shape):
            raise CheckpointError(f"{name} has the shape {weight.shape}, the net expects {tuple(old.weight.shape)}.")
        if isinstance(old, nn.Linear):
            setattr(parent, child, AffineLinear(weight, backend.device, backend.torch_dtype, old.bias, native=native))
        else:
            setattr(parent, child, AffineEmbedding(weight, backend.device, backend.torch_dtype, native=native))


def _has(net: nn.Module, path: str) -> bool:
    try:
        net.get_submodule(path)
    except AttributeError:
        return False
    return True
