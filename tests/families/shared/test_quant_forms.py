"""Every way an affine matrix is held: the same products and rows as the dense matrix it stands for."""

from __future__ import annotations

import ctypes
import logging
import platform
import subprocess
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest
import torch

from izwi_lab.artifacts.gguf_blocks import affine as from_blocks
from izwi_lab.artifacts.quantise import affine
from izwi_lab.artifacts.tensors import AffineTensor, pack_codes
from izwi_lab.backends import native
from izwi_lab.backends.loading import Unread
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.shared.nets.quant import mlx_net, native_torch, packed_torch, torch_net
from izwi_lab.families.shared.nets.quant.layout import Form, form_for
from izwi_lab.families.shared.nets.quant.panels_torch import Panels
from izwi_lab.families.shared.nets.quant.rows_torch import Rows

ROUNDED = 1e-4  # of the largest product: activations of 16 bits
BFLOAT16 = 0.012  # activations, scales and products of 8 bits
BLOCK_BYTES = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}


@pytest.fixture(scope="module", autouse=True)
def compiled():
    assert native.library("affine", wait=True) is not None, native.status()
    assert native.library("decoder", wait=True) is not None, native.status()
    assert native_torch.available()


def matrix(bits, group_size, *, scale="float32", centred=False, rows=150, cols=768, seed=0) -> AffineTensor:
    """Random codes; scale: what the scales and biases are exact in."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 1 << bits, (rows, cols), dtype=np.uint8)
    scales = (rng.random((rows, cols // group_size)) - 0.3).astype(np.float32) / (1 << bits)
    biases = rng.standard_normal(scales.shape).astype(np.float32) - scales * (1 << (bits - 1))
    if scale == "bfloat16":
        scales, biases = ((a.view(np.uint32) & 0xFFFF0000).view(np.float32) for a in (scales, biases))
    elif scale == "float16":
        scales, biases = scales.astype(np.float16), biases.astype(np.float16)
    if centred:
        biases = scales * scales.dtype.type(-(1 << (bits - 1)))
    return AffineTensor(pack_codes(codes, bits), scales, biases, bits, group_size)


def k_quant(kind, rows=40, cols=512) -> AffineTensor:
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 256, (rows, cols // 256, BLOCK_BYTES[kind]), dtype=np.uint8)
    for at in (208,) if kind == "Q6_K" else (0, 2):
        raw[..., at : at + 2] = (0.01 * rng.standard_normal(raw.shape[:2])).astype("<f2")[..., None].view(np.uint8)
    expected = gguf.quants.dequantize(raw.reshape(rows, -1), gguf.GGMLQuantizationType[kind])
    found = from_blocks(kind, raw.reshape(-1), (rows, cols))
    np.testing.assert_array_equal(found.float32(), expected)
    return found


MATRICES = {
    **{f"{b} bits of {g}": matrix(b, g) for b in (4, 5, 6, 8) for g in (32, 64, 128)},
    **{f"{b} bits, {s}": matrix(b, 32, scale=s) for b in (4, 5) for s in ("float16", "bfloat16")},
    **{f"{b} bits around zero": matrix(b, 32, scale="float16", centred=True) for b in (4, 5, 6, 8)},
    "6 bits of 16": matrix(6, 16),
    "6 bits of 16 around zero": matrix(6, 16, centred=True),
    **{kind: k_quant(kind) for kind in BLOCK_BYTES},
}
X = np.random.default_rng(2).standard_normal((21, 768)).astype(np.float32) * np.logspace(-2, 2, 21)[:, None]


def nearly(found, weight, x, tolerance):
    exact = x.astype(np.float64) @ weight.float32().astype(np.float64).T
    worst = np.abs(np.asarray(found, np.float64) - exact).max(axis=-1) / np.abs(exact).max(axis=-1)
    assert worst.max() < tolerance, worst


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("tokens", [1, 3, 8, 21])
def test_compiled_products(name, tokens):
    weight = MATRICES[name]
    x = X[:tokens, : weight.shape[1]].astype(np.float32)
    nearly(Panels(weight).product(torch.from_numpy(x)), weight, x, ROUNDED)


@pytest.mark.parametrize("name", MATRICES)
def test_rows_are_exact_in_every_form_that_has_them(name):
    weight = MATRICES[name]
    ids = np.asarray([[0, 39], [17, 16], [5, 31]])
    expected = weight.float32()[ids]
    for held in (Panels(weight), Rows(weight, "cpu")):
        found = held.lookup(torch.from_numpy(ids), torch.float32).numpy()
        np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-6)


def test_a_row_that_is_none_is_refused():
    for bad in ([-1], [150]):
        with pytest.raises(IndexError, match="150 rows"):
            Panels(MATRICES["4 bits of 32"]).lookup(torch.tensor(bad), torch.float32)


@pytest.mark.parametrize("name", MATRICES)
def test_expanded_products(name):
    weight = MATRICES[name]
    x = np.ascontiguousarray(X[:3, : weight.shape[1]], np.float32)
    nearly(Rows(weight, "cpu").product(torch.from_numpy(x)), weight, x, 1e-5)
    again = Rows(weight, "cpu").tensor()
    np.testing.assert_array_equal(again.float32(), weight.float32())


def test_rows_may_end_within_a_block_of_32():
    weight = matrix(6, 16, cols=48)  # no panels: see the forms below
    layer = torch_net.AffineLinear(weight, "cpu", torch.float32, None)
    x = np.ascontiguousarray(X[:3, :48], np.float32)
    assert layer.form == Form.ROWS
    nearly(layer(torch.from_numpy(x)), weight, x, 1e-5)
    found = layer.held.lookup(torch.tensor([3, 149]), torch.float32)
    np.testing.assert_allclose(found, weight.float32()[[3, 149]], rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("name", [n for n, m in MATRICES.items() if m.group_size != 16])
@pytest.mark.parametrize("tokens", [1, 21])
def test_packed_int4_products(name, tokens):
    weight = MATRICES[name]
    x = np.ascontiguousarray(X[:tokens, : weight.shape[1]], np.float32)
    nearly(packed_torch.PackedCPU(weight).product(torch.from_numpy(x)), weight, x, BFLOAT16)


def test_packed_int4_is_the_same_in_blocks_of_rows(monkeypatch):
    weight = matrix(4, 32, rows=200, cols=64)
    whole = packed_torch.PackedCPU(weight).q
    monkeypatch.setattr(packed_torch, "_BLOCK_VALUES", 1)
    assert torch.equal(packed_torch.PackedCPU(weight).q, whole)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MATRICES)
def test_mlx_products(name, dtype):
    weight = MATRICES[name]
    layer = mlx_net.AffineEmbedding(weight, getattr(mx, dtype), "cpu")
    x = np.ascontiguousarray(X[:3, : weight.shape[1]], np.float32)
    with mx.stream(mx.cpu):
        inputs = mx.array(x).astype(getattr(mx, dtype))
        y, rows = layer.as_linear(inputs), layer(mx.array([3, 17]))
        assert y.dtype == rows.dtype == getattr(mx, dtype)
        found, seen = np.array(y.astype(mx.float32)), np.array(inputs.astype(mx.float32))
        values = np.array(rows.astype(mx.float32))
    # Scales and sums are float32: only the result is rounded, and the matrix that groups of 16 are expanded to.
    tolerance = 2e-5 if dtype == "float32" else 0.01 if weight.group_size == 16 else 0.004
    nearly(found, weight, seen, tolerance)
    largest = np.abs(weight.float32()).max()
    assert np.abs(values - weight.float32()[[3, 17]]).max() <= (1e-6 if dtype == "float32" else 0.005) * largest


def test_mlx_scales_on_a_gpu_keep_the_compute_dtype_only_where_it_is_exact():
    exact = mlx_net.held(MATRICES["4 bits, bfloat16"], mx.bfloat16)
    assert [a.dtype for a in exact] == [mx.bfloat16, mx.bfloat16]
    wide = mlx_net.held(MATRICES["4 bits, float16"], mx.bfloat16)
    assert [a.dtype for a in wide] == [mx.float32, mx.float32]
    np.testing.assert_array_equal(np.array(wide[0]), MATRICES["4 bits, float16"].scales)


def test_scales_are_held_in_the_narrowest_type_that_is_exact():
    held = {n: Panels(m) for n, m in MATRICES.items()}
    assert held["4 bits of 32"].scales.dtype == torch.float32
    assert held["4 bits, float16"].scales.dtype == held["5 bits, float16"].biases.dtype == torch.float16
    assert held["4 bits, bfloat16"].scales.dtype == torch.bfloat16
    assert held["8 bits around zero"].biases is None and held["Q6_K"].biases is None
    bits_per_weight = {n: 8 * sum(b.nbytes for b in held[n].buffers()) / (48 * 512) for n in BLOCK_BYTES}
    assert bits_per_weight["Q4_K"] == 4.625 and bits_per_weight["Q5_K"] == 5.625  # 4.5 and 5.5 in the file
    assert bits_per_weight["Q6_K"] == 6.5625


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other instruction sets run the portable code anyway")
def test_the_portable_code_gives_the_same_products(tmp_path):
    source = Path(native.__file__).with_name("affine.cpp")
    target = tmp_path / "portable.so"
    flags = ["-O1", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-march=x86-64-v3"]
    subprocess.run(["g++", *flags, str(source), "-o", str(target)], check=True)
    portable = ctypes.CDLL(str(target))
    for name in ("4 bits of 64", "5 bits, float16", "8 bits around zero", "Q4_K", "Q5_K", "Q6_K", "6 bits of 16"):
        weight = MATRICES[name]
        held, x = Panels(weight), np.ascontiguousarray(X[:9, : weight.shape[1]], np.float32)
        out = np.empty((9, weight.shape[0]), np.float32)
        portable.izwi_affine_matmul(
            ctypes.byref(held.descriptor()), ctypes.c_void_p(x.ctypes.data), 9, ctypes.c_void_p(out.ctypes.data), 1
        )
        fast = held.product(torch.from_numpy(x)).numpy()
        assert np.abs(out - fast).max() <= 1e-5 * np.abs(fast).max(), (
            name
        )  # the same integers, float32 in another order


@pytest.mark.parametrize(
    ("where", "shape", "bits", "group", "options", "form"),
    [
        (("cpu", "float32"), (150, 768), 5, 32, {"native": True}, Form.PANELS),
        (("cpu", "bfloat16"), (150, 768), 6, 16, {"native": True}, Form.PANELS),
        (("cpu", "bfloat16"), (150, 768), 4, 16, {"native": True}, Form.ROWS),
        (("cpu", "float32"), (150, 48), 6, 16, {"native": True}, Form.ROWS),
        (("cpu", "float32"), (150, 768), 8, 32, {}, Form.INT4_CPU),
        (("cpu", "float32"), (150, 768), 6, 16, {}, Form.ROWS),
        (("mps", "float16"), (150, 768), 4, 32, {}, Form.ROWS),
        (("cuda:0", "bfloat16"), (152, 768), 4, 64, {"capability": (9, 0)}, Form.INT4_CUDA),
        (("cuda:0", "float16"), (152, 768), 4, 64, {"capability": (9, 0)}, Form.ROWS),
        (("cuda:0", "bfloat16"), (152, 768), 4, 64, {"capability": (7, 5)}, Form.ROWS),
        (("cuda:0", "bfloat16"), (152, 768), 8, 64, {"capability": (9, 0)}, Form.ROWS),
        (("cuda:0", "bfloat16"), (152, 576), 4, 64, {"capability": (9, 0)}, Form.ROWS),
        (("cuda:0", "bfloat16"), (150, 768), 4, 64, {"capability": (9, 0)}, Form.ROWS),
        (("cuda:0", "bfloat16"), (152, 768), 4, 16, {"capability": (9, 0)}, Form.ROWS),
    ],
)
def test_the_form_follows_from_device_and_shape(where, shape, bits, group, options, form):
    assert form_for(*where, shape, bits, group, **options) == form


def test_without_a_compiler_layers_pack_int4_and_an_embedding_still_has_its_rows(monkeypatch):
    monkeypatch.setattr(native_torch, "library", lambda: None)
    weight = MATRICES["8 bits around zero"]
    linear = torch_net.AffineLinear(weight, "cpu", torch.float32, None)
    table = torch_net.AffineEmbedding(weight, "cpu", torch.float32)
    assert isinstance(linear.held, packed_torch.PackedCPU) and not linear.panelled and not table.panelled
    x = torch.from_numpy(X[:2].astype(np.float32))
    np.testing.assert_allclose(table(torch.tensor([149]))[0], weight.float32()[149], atol=1e-6)
    assert torch.equal(table.as_linear(x), linear(x))
    assert isinstance(torch_net.AffineLinear(MATRICES["Q6_K"], "cpu", torch.float32, None).held, Rows)


def test_a_load_without_kernels_warns_once_and_says_what_serves(monkeypatch, caplog):
    monkeypatch.setattr(native_torch, "library", lambda: None)
    monkeypatch.setattr(native_torch.native, "status", lambda: {"decoder": "building", "affine": "ready"})
    monkeypatch.setattr(native_torch.native, "known", lambda: {"decoder": "not compiled yet", "affine": "compiled"})
    net = torch.nn.ModuleDict({n: torch.nn.Linear(768, 150, bias=False) for n in ("a", "b")})
    weights = {f"{n}.weight": MATRICES["8 bits around zero"] for n in net}
    with caplog.at_level("INFO"):
        torch_net.use_affine(net, Unread(weights, list(weights)), TorchBackend("cpu", "float32"))
    assert isinstance(net["b"].held, packed_torch.PackedCPU)
    (record,) = [r for r in caplog.records if "packed int4" in r.message]
    assert record.levelname == "WARNING" and "bfloat16" in record.message
    assert "decoder: still compiling after 60 s" in record.message


class Wrong(torch.nn.Module):
    """A packed form whose product is half of what it should be."""

    def __init__(self, weight, device):
        super().__init__()
        self.rows = Rows(weight, device)

    def product(self, x):
        return self.rows.product(x) / 2


def test_a_packed_product_that_disagrees_is_not_used(monkeypatch, caplog):
    weight = affine(np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32), group_size=32)
    monkeypatch.setattr(packed_torch, "PackedCUDA", Wrong)
    with caplog.at_level(logging.WARNING):
        assert isinstance(packed_torch.cuda_form(weight, "cpu"), Rows)
    assert "[16, 128]" in caplog.text and "off by" in caplog.text
    assert packed_torch.agree(torch.tensor([1.0, 100.0]), torch.tensor([2.0, 100.0])) == (True, 1.0, 100.0)
    assert not packed_torch.agree(torch.tensor([1.0, 97.0]), torch.tensor([1.0, 100.0]))[0]
    assert not packed_torch.agree(torch.tensor([float("nan")]), torch.tensor([1.0]))[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_packs_int4():
    weight = affine(np.random.default_rng(0).standard_normal((512, 1024)).astype(np.float32), group_size=64)
    layer = torch_net.AffineLinear(weight, "cuda:0", torch.bfloat16, None)
    assert isinstance(layer.held, packed_torch.PackedCUDA)
    x = np.random.default_rng(1).standard_normal((5, 1024)).astype(np.float32)
    nearly(layer(torch.from_numpy(x).to("cuda:0", torch.bfloat16)).float().cpu(), weight, x, 0.02)
