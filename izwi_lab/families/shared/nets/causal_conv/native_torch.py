"""The CPU path of a codec's nets: Snake, causal convolution, bias and residual in one pass of the native kernel.

Packing moves the weights: parameters keep their names and shapes but hold no memory of their own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn

from izwi_lab.backends import native
from izwi_lab.families.shared.nets.causal_conv.torch_net import Activation, CausalConv1d, Snake
from izwi_lab.families.shared.nets.conv_stack.kernels_torch import Kernels, NativeLinear, Packed, release
from izwi_lab.families.shared.nets.windowed.torch_net import Linear

_FEW = 16  # outputs: fewer would leave most of the kernel's lanes empty


def attach(net: nn.Module, *, float32: bool) -> bool:
    """Pack the convolutions of `net` that the kernel can run. False where there is no kernel for this machine.

    float32: the weights are, so a CPU without bfloat16 products will do.
    """
    library = native.library("kokoro", wait=native.WAIT_S)
    if library is None or not (float32 or library.kokoro_has_bf16()):
        return False
    kernels = Kernels(library)
    module: Any
    for module in net.modules():
        if isinstance(module, CausalConv1d) and module.stride[0] == 1 and module.groups == 1:
            module.causal = NativeCausal(kernels, module)
        elif isinstance(module, CausalConv1d) and module.groups == 1 and _halves(module):
            module.causal = NativeDown(kernels, module)
        elif isinstance(module, CausalConv1d) and module.stride[0] == 1 and module.groups == module.out_channels:
            module.causal = Depthwise(module)
        elif isinstance(module, Linear):
            module.native = NativeLinear(kernels, module)
    return True


def held_bytes(net: nn.Module) -> int:
    """Bytes of a net's weights, packed or not."""
    plain: int = sum(p.nbytes for p in net.state_dict().values() if p.device.type != "meta")
    paths = (getattr(m, name, None) for m in net.modules() for name in ("causal", "native"))
    return plain + sum(int(p.nbytes) for p in paths if p is not None)


class Depthwise:
    """A convolution of each channel by itself, tap by tap: for a few rows the general one costs more to set up."""

    nbytes = 0  # the parameters stay

    def __init__(self, conv: CausalConv1d) -> None:
        self.taps = conv.weight[:, 0].float().T.contiguous()  # [taps, C]
        self.bias, self.dilation = conv.bias, conv.dilation[0]

    def __call__(
        self, x: torch.Tensor, before: torch.Tensor | None, act: Activation | None, residual: torch.Tensor | None
    ) -> torch.Tensor:
        """x: [1, T, C] after the rows `before` -> [1, T, C]."""
        rows, count = x if before is None else torch.cat([before, x], dim=1), x.shape[1]
        rows = rows if act is None else act(rows)
        y = rows[:, :count] * self.taps[0]
        for i, tap in enumerate(self.taps[1:], 1):
            y.addcmul_(rows[:, i * self.dilation : i * self.dilation + count], tap)
        y = y if self.bias is None else y.add_(self.bias)
        return y if residual is None else y.add_(residual)


def _halves(conv: CausalConv1d) -> bool:
    return bool(conv.kernel_size[0] == 2 * conv.stride[0] and conv.dilation[0] == 1)


class NativeDown:
    """A convolution whose kernel is twice its stride: over blocks of `stride` rows it has two taps and no stride."""

    def __init__(self, kernels: Kernels, conv: CausalConv1d) -> None:
        self.kernels, self.stride = kernels, conv.stride[0]
        blocks = conv.weight.unflatten(2, (2, self.stride)).permute(0, 3, 1, 2).flatten(1, 2)  # [outs, stride * ins, 2]
        self.packed = Packed(kernels, blocks, conv.bias)
        release(conv)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self.packed.nbytes

    def __call__(
        self, x: torch.Tensor, before: torch.Tensor | None, act: Activation | None, residual: torch.Tensor | None
    ) -> torch.Tensor:
        """x: [1, T, C] after the rows `before`, T whole times the stride -> [1, T / stride, C']."""
        assert before is not None, "a kernel longer than the stride has a past"
        rows, past = (x, before) if act is None else (act(x), act(before))
        blocks = rows[0].reshape(-1, self.stride * x.shape[2])
        y = self.kernels.convolve(blocks, self.packed, past=past[0].reshape(1, -1))[0][None]
        return y if residual is None else y + residual


class NativeCausal:
    """One convolution. One with few outputs is a product for each tap, whose results are then added along time."""

    def __init__(self, kernels: Kernels, conv: CausalConv1d) -> None:
        self.kernels, self.outs, self.taps, self.dilation = (
            kernels,
            conv.out_channels,
            conv.kernel_size[0],
            conv.dilation[0],
        )
        self.bias = None
        if self.outs >= _FEW or self.taps == 1:
            self.few, self.packed = False, Packed.of(kernels, conv)
        else:
            self.few, self.bias = True, conv.bias
            rows = conv.weight.permute(2, 0, 1).flatten(0, 1).unsqueeze(-1)  # [taps * outs, ins, 1]
            self.packed = Packed(kernels, rows, None)
            release(conv)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self.packed.nbytes

    def __call__(
        self, x: torch.Tensor, before: torch.Tensor | None, act: Activation | None, residual: torch.Tensor | None
    ) -> torch.Tensor:
        """x: [1, T, C] after the rows `before` -> [1, T, C']."""
        rows, past = x[0].contiguous(), None if before is None else before[0].contiguous()
        snake: dict[str, torch.Tensor] = {}
        if isinstance(act, Snake):
            snake = {"alpha": act.alpha, "inverse": act.inverse_beta}
        elif act is not None:  # another one is not in the kernel
            rows, past = act(rows), None if past is None else act(past)
        added = None if residual is None else residual[0].contiguous()
        if not self.few:
            return self.kernels.convolve(rows, self.packed, past=past, residual=added, **snake)[0][None]
        y = self._along_time(rows, past, snake)
        y = y if self.bias is None else y + self.bias
        return (y if added is None else y + added)[None]

    def _along_time(
        self, rows: torch.Tensor, past: torch.Tensor | None, snake: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        parts = [] if past is None else [self.kernels.convolve(past, self.packed, **snake)[0]]
        products = torch.cat([*parts, self.kernels.convolve(rows, self.packed, **snake)[0]]).unflatten(
            1, (self.taps, -1)
        )
        count = rows.shape[0]
        y = products[:count, 0].clone()
        for tap in range(1, self.taps):
            start = tap * self.dilation
            y += products[start : start + count, tap]
        return y
