"""Detection: this machine's devices, and other machines' from what their systems print."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import pytest

from izwi_lab.backends import detect, host, nvidia
from izwi_lab.backends.base import Rejection

pytestmark = pytest.mark.usefixtures("clean_environment")

SMI = """0, GPU-aaaa-1, NVIDIA H100 80GB HBM3, 81559, 80994, 9.0
1, GPU-bbbb-2, Tesla V100-SXM2-16GB, 16384, 16000, 7.0
2, GPU-cccc-3, NVIDIA Odd, [N/A], [N/A], [N/A]
garbled line
"""


@pytest.fixture
def gpus(monkeypatch):
    found = nvidia.parse_smi(SMI)
    monkeypatch.setattr(nvidia, "gpus", lambda: found)
    return found


@pytest.fixture
def mac(monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(host, "cpu_features", lambda: ("neon", "bf16"))
    monkeypatch.setattr(nvidia, "gpus", lambda: ())


def test_this_machine_has_a_cpu_for_torch_with_its_memory():
    cpu = next(d for d in detect.devices() if d.backend == "torch" and d.name == "cpu")
    assert cpu.kind == "cpu" and cpu.version == metadata.version("torch")
    assert 0 < cpu.available_bytes <= cpu.memory_bytes
    assert "cores" in cpu.label


def test_devices_are_the_surveys_and_what_is_missing_says_why():
    survey = detect.survey()
    assert [d.name for d in survey.devices] == [d.name for d in detect.devices()]
    seen = {(d.backend, d.kind) for d in survey.devices} | {(r.backend, r.device) for r in survey.missing}
    assert seen == {("torch", "cuda"), ("torch", "mps"), ("torch", "cpu"), ("mlx", "gpu"), ("mlx", "cpu")}
    assert all(len(r.reason) > 10 for r in survey.missing)


@pytest.mark.parametrize(
    ("text", "version", "cuda"),
    [
        (
            "from typing import Optional\n__all__ = ['__version__']\n__version__ = '2.13.0+cpu'\n"
            "debug = False\ncuda: Optional[str] = None\nhip: Optional[str] = None\n",
            "2.13.0+cpu",
            None,
        ),
        ("__version__ = '2.11.0+cu128'\ncuda: Optional[str] = '12.8'\n", "2.11.0+cu128", "12.8"),
        ("__version__ = '2.11.0+cu128'\ncuda = '12.8'\n", "2.11.0+cu128", "12.8"),
        ('__version__: str = "3.0"\n', "3.0", None),
        ("", "unknown", None),
    ],
)
def test_torch_is_read_as_text(text, version, cuda):
    assert detect.read_torch_version(text) == detect.TorchBuild(version, cuda)


def test_the_installed_torch_is_what_its_metadata_says():
    assert detect.torch_build().version == metadata.version("torch")


def test_cuda_devices_with_a_cuda_build(gpus, monkeypatch):
    monkeypatch.setattr(detect, "torch_build", lambda: detect.TorchBuild("2.13.0+cu130", "13.0"))
    found = [d for d in detect.devices() if d.kind == "cuda"]
    assert [(d.name, d.label, d.features) for d in found] == [
        ("cuda:0", "NVIDIA H100 80GB HBM3", ("sm_90",)),
        ("cuda:1", "Tesla V100-SXM2-16GB", ("sm_70",)),
        ("cuda:2", "NVIDIA Odd", ()),
    ]
    assert found[0].memory_bytes == 81559 * 2**20 and found[0].available_bytes == 80994 * 2**20
    assert found[2].memory_bytes == 0
    assert detect.devices()[0] == found[0], "accelerators come first"


def test_a_gpu_and_a_cpu_build_of_torch_is_said(gpus, monkeypatch):
    monkeypatch.setattr(detect, "torch_build", lambda: detect.TorchBuild("2.13.0+cpu", None))
    reasons = {(r.backend, r.device): r.reason for r in detect.survey().missing}
    assert reasons["torch", "cuda"] == "torch 2.13.0+cpu is built without CUDA; a CUDA build sees NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize(
    ("setting", "indices"),
    [
        (None, [0, 1, 2]),
        ("1,0", [1, 0]),
        ("GPU-cccc", [2]),
        ("2,-1,0", [2]),
        ("0,9,1", [0]),
        ("1,1", [1]),
        ("", []),
        ("-1", []),
        ("GPU-", []),
        ("MIG-8d4", [0]),
    ],
)
def test_cuda_visible_devices_is_obeyed(gpus, setting, indices):
    assert [g.index for g in nvidia.select_visible(gpus, setting)] == indices


def test_a_slice_of_a_gpu_has_memory_that_is_not_told(gpus):
    (mig,) = nvidia.select_visible(gpus, "MIG-8d4")
    assert (mig.name, mig.memory_bytes, mig.features) == ("NVIDIA H100 80GB HBM3 (MIG)", 0, ("sm_90",))
    assert nvidia.select_visible((), "MIG-8d4") == ()


def test_mlx_without_its_library_is_not_a_device(monkeypatch):
    monkeypatch.setattr(detect, "mlx_version", lambda: "0.32.4")
    monkeypatch.setattr(detect, "_mlx_core_installed", lambda: False)
    reasons = {(r.backend, r.device): r.reason for r in detect.survey().missing}
    assert "without its library" in reasons["mlx", "cpu"]


def test_hidden_gpus_are_said_to_be_hidden(gpus, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hides 3 NVIDIA GPU(s)" in nvidia.why_none()
    monkeypatch.setattr(nvidia, "gpus", lambda: ())
    assert "driver" in nvidia.why_none()


def test_the_driver_is_asked_once_for_calls_that_follow_at_once(monkeypatch):
    asked = []
    monkeypatch.setattr(nvidia, "_answer", None)
    monkeypatch.setattr(nvidia, "output_of", lambda *command: asked.append(command) or SMI)
    assert nvidia.gpus() == nvidia.gpus() == nvidia.parse_smi(SMI)
    assert len(asked) == 1 and asked[0][0] == "nvidia-smi"
    monkeypatch.setattr(nvidia, "_answer", None)


def test_without_nvidia_smi_the_drivers_files_tell_names(tmp_path):
    folder = tmp_path / "0000:01:00.0"
    folder.mkdir()
    (folder / "information").write_text("Model: \t\t NVIDIA A10\nIRQ: 1\nGPU UUID: \t GPU-1234\n")
    assert nvidia._from_proc(tmp_path) == (nvidia.Gpu(0, "GPU-1234", "NVIDIA A10"),)
    assert nvidia._from_proc(tmp_path / "none") == ()


def test_a_missing_or_failing_command_prints_nothing():
    assert host.output_of("izwi-no-such-command") is None
    assert host.output_of("false") is None
    assert host.output_of("echo", "hello") == "hello\n"


def test_an_apple_machine_has_mlx_and_mps(mac, monkeypatch):
    monkeypatch.setattr(detect, "mlx_version", lambda: "0.32.4")
    names = [(d.backend, d.name) for d in detect.devices()]
    assert names == [("mlx", "gpu"), ("torch", "mps"), ("torch", "cpu"), ("mlx", "cpu")]


def test_without_mlx_each_of_its_devices_names_the_extra(monkeypatch):
    monkeypatch.setattr(detect, "mlx_version", lambda: None)
    survey = detect.survey()
    assert all(d.backend == "torch" for d in survey.devices)
    missing = {r.device: r.reason for r in survey.missing if r.backend == "mlx"}
    assert set(missing) == {"gpu", "cpu"} and all("izwi-lab[mlx]" in why for why in missing.values())


def test_without_torch_each_of_its_devices_names_the_extra(monkeypatch):
    monkeypatch.setattr(detect, "torch_build", lambda: None)
    missing = [r for r in detect.survey().missing if r.backend == "torch"]
    assert Rejection("torch", "cpu", "torch is not installed: pip install 'izwi-lab[torch]'") in missing


@pytest.mark.parametrize(
    ("cpuinfo", "features"),
    [
        (
            "flags\t\t: fpu sse avx2 avx512f avx512_bf16 avx512_vnni\n",
            ("avx2", "avx512f", "avx512_bf16", "avx512_vnni"),
        ),
        ("flags\t\t: avx2 amx_bf16 amx_tile amx_int8\n", ("avx2", "amx_bf16", "amx_int8")),
        ("Features\t: fp asimd asimddp i8mm bf16 sve\n", ("neon", "dotprod", "bf16", "i8mm", "sve")),
        ("processor: 0\n", ()),
        ("", ()),
    ],
)
def test_cpu_features_are_read_from_cpuinfo(cpuinfo, features):
    assert host.features_of(cpuinfo) == features


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (8000 * 1024, 6000 * 1024)),
        ({"memory.max": "max\n", "memory.current": "5\n"}, (8000 * 1024, 6000 * 1024)),
        ({"memory.max": "2048000\n", "memory.current": "48000\n"}, (2048000, 2000000)),
        ({"memory.max": "2048000\n", "memory.current": "9048000\n"}, (2048000, 0)),
        (
            {"memory/memory.limit_in_bytes": "1024000\n", "memory/memory.usage_in_bytes": "24000\n"},
            (1024000, 1000000),
        ),
        ({"memory.max": "9223372036854771712\n", "memory.current": "5\n"}, (8000 * 1024, 6000 * 1024)),
    ],
)
def test_memory_is_the_machines_or_the_containers(tmp_path, files, expected):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  8000 kB\nMemFree:  10 kB\nMemAvailable:  6000 kB\nOdd:\n")
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = host.memory(tmp_path)
    assert (found.total_bytes, found.available_bytes) == expected


def test_memory_without_proc_is_still_told(tmp_path):
    found = host.memory(tmp_path)
    assert found.total_bytes > 0


def test_the_kernels_say_that_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from izwi_lab.backends import native

    monkeypatch.setenv("IZWI_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(native, "_jobs", {})
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert native.known() and all("no C++ compiler" in reason for reason in native.known().values())
    monkeypatch.setattr(native.shutil, "which", lambda name: "/usr/bin/" + name)
    assert set(native.known().values()) == {"not compiled yet"}


def test_a_cxx_that_is_no_compiler_is_said_and_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from izwi_lab.backends import native

    monkeypatch.setenv("IZWI_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(native, "_jobs", {})
    monkeypatch.setattr(native.shutil, "which", {"g++": "/usr/bin/g++", "icpx": "/opt/icpx"}.get)
    assert native._compiler() == "/usr/bin/g++"
    assert set(native.known().values()) == {"CXX names no compiler: 'no-such-compiler'; not compiled yet"}
    monkeypatch.setenv("CXX", "icpx")
    assert native._compiler() == "/opt/icpx" and set(native.known().values()) == {"not compiled yet"}


def test_a_failed_build_is_known_to_later_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from izwi_lab.backends import native

    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'no such header' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("IZWI_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("IZWI_NATIVE", "1")
    monkeypatch.setattr(native, "_jobs", {})
    assert native.library("sampler", wait=True) is None
    assert "no such header" in native.known()["sampler"]
    monkeypatch.setattr(native, "_jobs", {})  # as in another process
    assert "the last build failed" in native.known()["sampler"] and "no such header" in native.known()["sampler"]
    assert native.known()["affine"] == "not compiled yet"


def test_freed_memory_goes_back_to_the_system():
    statm = Path("/proc/self/statm")
    if not statm.exists() or platform.libc_ver()[0] != "glibc":
        pytest.skip("this C library keeps nothing, or the system does not tell what is resident")
    kept = [b"x" * (64 << 10) for _ in range(1024)]  # 64 MiB in blocks that glibc keeps
    above = b"x" * (64 << 10)  # so that the heap cannot shrink from its top
    del kept
    before = int(statm.read_text().split()[1])
    host.return_freed_memory()
    assert (before - int(statm.read_text().split()[1])) * os.sysconf("SC_PAGE_SIZE") > 32 << 20
    assert len(above) == 64 << 10
