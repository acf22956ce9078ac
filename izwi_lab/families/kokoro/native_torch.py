"""Kokoro's CPU path: the blocks of the torch net on the kernels of `backends/native/kokoro.cpp`.

`attach` gives the blocks of a net their `native` path; without the library the plain torch path of each block runs.
Packing moves the weights: the net's parameters keep their names and shapes but hold no memory of their own.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn as nn

from izwi_lab.backends import native
from izwi_lab.families.kokoro.nets.adain.torch_net import LeakyBlock, SnakeBlock
from izwi_lab.families.kokoro.nets.albert.torch_net import Linear
from izwi_lab.families.kokoro.nets.generator.torch_net import Generator
from izwi_lab.families.shared.nets.conv_stack.kernels_torch import (
    Kernels,
    NativeLinear,
    Packed,
    aligned,
    pointer,
    release,
    scratch,
)
from izwi_lab.families.shared.nets.conv_stack.torch_net import Conv1d, ConvTranspose1d
from izwi_lab.families.shared.nets.lstm.torch_net import BiLSTM

_PARALLEL_HIDDEN = 64  # of an LSTM; below it both directions on one thread are faster


def attach(net: nn.Module, *, float32: bool) -> bool:
    """Pack the convolutions and LSTMs of `net` and switch its blocks to the kernels. False where there are none.

    float32: the net computes in float32 throughout, so a CPU without bfloat16 products will do.
    """
    library = native.library("kokoro", wait=native.WAIT_S)
    if library is None or not (float32 or library.kokoro_has_bf16()):
        return False
    if any(m.kernel_size[0] != 2 * m.stride[0] for m in net.modules() if isinstance(m, ConvTranspose1d)):
        return False  # no official checkpoint; the plain path takes any
    kernels = Kernels(library)
    # Blocks come before the convolutions inside them, whose weights they then hold.
    module: Any
    for module in list(net.modules()):
        if isinstance(module, SnakeBlock):
            module.native = NativeSnake(kernels, module)
        elif isinstance(module, LeakyBlock):
            module.native = NativeLeaky(kernels, module)
        elif isinstance(module, Linear):
            module.native = NativeLinear(kernels, module)
        elif isinstance(module, Generator):
            module.native = NativeGenerator(kernels, module)
        elif isinstance(module, Conv1d) and module.weight.device.type != "meta":
            module.native = NativeConv(kernels, module)
        elif isinstance(module, ConvTranspose1d):
            module.native = NativeUp(kernels, module)
        elif isinstance(module, BiLSTM) and module.hidden_size % 16 == 0:
            module.native = NativeLSTM(kernels, module)
    return True


class NativeConv:
    """A convolution outside the blocks; one with a stride becomes a product over its windows."""

    def __init__(self, kernels: Kernels, conv: Conv1d) -> None:
        self.kernels, self.stride, self.taps, self.pad = kernels, conv.stride[0], conv.kernel_size[0], conv.padding[0]
        if self.stride == 1:
            self.packed = Packed.of(kernels, conv)
        else:
            self.packed = Packed(kernels, conv.weight.flatten(1).unsqueeze(-1), conv.bias)
            release(conv)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self.packed.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [1, T, Cin] -> [1, T', Cout]."""
        return self.run(x[0])[None]

    def run(self, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """rows: [T, Cin] -> [T', Cout], into `out` where given."""
        if self.stride > 1:
            rows = nn.functional.pad(rows, (0, 0, self.pad, self.pad)).unfold(0, self.taps, self.stride).flatten(1)
        return self.kernels.convolve(rows.contiguous(), self.packed, out=out)[0]


class NativeSnake:
    """SnakeBlock with norm, Snake, convolution, residual and statistics in one pass each."""

    def __init__(self, kernels: Kernels, block: SnakeBlock) -> None:
        self.kernels, self.norms = kernels, (list(block.adain1), list(block.adain2))
        self.convs = [[Packed.of(kernels, c) for c in convs] for convs in (block.convs1, block.convs2)]
        self.alphas = [[a.detach().float().flatten() for a in alphas] for alphas in (block.alpha1, block.alpha2)]

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return sum(c.nbytes for convs in self.convs for c in convs)

    def __call__(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """x: [1, T, C] -> [1, T, C]."""
        rows = x[0].contiguous()
        inner, own = torch.empty_like(rows), torch.empty_like(rows)
        return self.run(rows, s, inner=inner, own=own, out=own)[None]

    def run(
        self,
        rows: torch.Tensor,
        s: torch.Tensor,
        *,
        inner: torch.Tensor,
        own: torch.Tensor,
        out: torch.Tensor,
        gain: float = 1.0,
        accumulate: bool = False,
    ) -> torch.Tensor:
        """The block of rows [T, C], times gain, into `out` or added to it.

        inner and own are memory for what is between; own and out may be `rows` itself where it is not needed again.
        """
        sums = self.kernels.sums(rows)
        last = len(self.convs[0]) - 1
        for i, (conv1, conv2) in enumerate(zip(*self.convs, strict=True)):
            norm = (sums, self.norms[0][i].modulation(s)[0])
            _, sums = self.kernels.convolve(rows, conv1, norm=norm, alpha=self.alphas[0][i], out=inner, sums=True)
            norm = (sums, self.norms[1][i].modulation(s)[0])
            end = {"gain": gain, "accumulate": accumulate, "out": out} if i == last else {"sums": True, "out": own}
            rows, sums = self.kernels.convolve(inner, conv2, norm=norm, alpha=self.alphas[1][i], residual=rows, **end)
        return rows


class NativeLeaky:
    """LeakyBlock with norm, leaky ReLU, convolution, shortcut and gain fused; the doubling pool stays torch's."""

    def __init__(self, kernels: Kernels, block: LeakyBlock) -> None:
        self.kernels, self.norm1, self.norm2, self.pool = kernels, block.norm1, block.norm2, block.pool
        self.plain_norm = block.norm1.forward
        self.conv1, self.conv2 = Packed.of(kernels, block.conv1), Packed.of(kernels, block.conv2)
        self.conv1x1 = None if block.conv1x1 is None else Packed.of(kernels, block.conv1x1)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return sum(c.nbytes for c in (self.conv1, self.conv2, self.conv1x1) if c is not None)

    def __call__(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """x: [1, T, Cin] -> [1, T or 2T, Cout]."""
        rows, run = x[0].contiguous(), self.kernels.convolve
        if self.pool is None:
            norm = (self.kernels.sums(rows), self.norm1.modulation(s)[0])
            inner, sums = run(rows, self.conv1, norm=norm, slope=0.2, sums=True)
        else:
            active = nn.functional.leaky_relu(self.plain_norm(x, s), 0.2)
            inner, sums = run(self.pool(active)[0].contiguous(), self.conv1, sums=True)
        if self.conv1x1 is not None:
            rows, _ = run(rows, self.conv1x1)
        if self.pool is not None:
            rows = rows.repeat_interleave(2, dim=0)
        norm = (sums, self.norm2.modulation(s)[0])
        out, _ = run(inner, self.conv2, norm=norm, slope=0.2, residual=rows, gain=0.5**0.5)
        return out[None]


class NativeUp:
    """A transposed convolution, kernel twice the stride, as an ordinary one with two taps and `rate` times the outputs.

    Output n + padding = q * rate + r sees input q through tap r and input q - 1 through tap r + rate.
    """

    def __init__(self, kernels: Kernels, up: ConvTranspose1d) -> None:
        self.kernels, self.rate, self.width, self.skip = kernels, up.stride[0], up.out_channels, up.padding[0]
        taps = up.weight.unflatten(2, (2, self.rate)).permute(3, 1, 0, 2).flatten(0, 1).flip(-1)  # [r * out, in, 2]
        self.packed = Packed(kernels, taps, up.bias.repeat(self.rate), pad=1)
        release(up)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return self.packed.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [1, T, Cin] -> [1, T * rate, Cout]."""
        return self.run(x[0].contiguous(), extra=0)[None]

    def run(self, rows: torch.Tensor, *, extra: int, slope: float = 1.0) -> torch.Tensor:
        """rows: [T, Cin] -> [extra + T * rate, Cout]; the extra rows before the first are left to the caller."""
        wide = scratch(rows.shape[0] + 1, self.rate * self.width)
        self.kernels.convolve(rows, self.packed, slope=slope, out=wide)
        return wide.view(-1, self.width)[self.skip - extra : self.skip + rows.shape[0] * self.rate]


class NativeGenerator:
    """A whole stage of the vocoder in four buffers: at 14 MB each for six seconds, they are most of what it needs."""

    nbytes = 0  # the blocks count their own

    def __init__(self, kernels: Kernels, generator: Generator) -> None:
        self.kernels, self.generator = kernels, generator

    def stage(self, index: int, x: torch.Tensor, har: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """x: [1, T, Cin] -> the mean of the stage's blocks, [1, T * rate (+ 1 in the last stage), Cout]."""
        net = self.generator
        last, up = index + 1 == len(net.ups), net.ups[index].native
        rows = up.run(x[0].contiguous(), extra=int(last), slope=0.1)
        if last:
            rows[0] = rows[2]  # reflected by one on the left
        inner, own, mean = (scratch(*rows.shape) for _ in range(3))
        net.noise_convs[index].native.run(har[0], out=own)
        rows += net.noise_res[index].native.run(own, s, inner=inner, own=own, out=own)
        for j in range(net.kernels):
            block = net.resblocks[index * net.kernels + j].native
            block.run(rows, s, inner=inner, own=own, out=mean, gain=1 / net.kernels, accumulate=j > 0)
        return mean[None]


class NativeLSTM:
    """Both directions of an LSTM: one product for the inputs, then the kernel's steps."""

    def __init__(self, kernels: Kernels, lstm: BiLSTM) -> None:
        self.kernels, self.hidden = kernels, lstm.hidden_size
        both = [[getattr(lstm, f"{part}_l0{end}") for end in ("", "_reverse")] for part in ("weight_ih", "weight_hh")]
        biases = [getattr(lstm, f"bias_ih_l0{end}") + getattr(lstm, f"bias_hh_l0{end}") for end in ("", "_reverse")]
        self.inputs = Packed(kernels, torch.cat(both[0]).float().unsqueeze(-1), torch.cat(biases))
        recurrent = torch.stack(both[1]).float().contiguous()
        self.recurrent = aligned(recurrent.nbytes)
        kernels.library.kokoro_lstm_pack(pointer(recurrent), self.hidden, pointer(self.recurrent))
        for part in ("weight_ih", "weight_hh"):
            for end in ("", "_reverse"):
                release(lstm, f"{part}_l0{end}")

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return int(self.inputs.nbytes + self.recurrent.nbytes)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [1, T, inputs] -> [1, T, 2 * hidden]."""
        gates, _ = self.kernels.convolve(x[0].contiguous(), self.inputs)
        out = torch.empty(x.shape[1], 2 * self.hidden)
        self.kernels.library.kokoro_lstm(
            pointer(gates),
            pointer(self.recurrent),
            ctypes.c_int64(x.shape[1]),
            self.hidden,
            pointer(out),
            torch.get_num_threads() if self.hidden >= _PARALLEL_HIDDEN else 1,
        )
        return out[None]
