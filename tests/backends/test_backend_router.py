"""The router: who decides, what is chosen, what is refused and why, on machines made up here."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from izwi_lab import backends, catalog
from izwi_lab.backends.base import BackendPlan, Rejection
from izwi_lab.backends.choice import read_choice
from izwi_lab.backends.detect import Device, Survey
from izwi_lab.backends.router import BackendRouter, ExecutionBackend
from izwi_lab.errors import BackendUnavailableError, InvalidInputError, MissingExtraError
from izwi_lab.settings import Settings, load

GB = 10**9
CPU = Device("cpu", "cpu", "torch", 32 * GB, 24 * GB, ("avx2", "avx512_bf16"), "2.13.0+cpu", "Test CPU")
OLD_CPU = dataclasses.replace(CPU, features=("avx2",))
MLX_CPU = dataclasses.replace(CPU, backend="mlx", version="0.32.4")
H100 = Device("cuda:0", "cuda", "torch", 80 * GB, 79 * GB, ("sm_90",), "2.13.0+cu130", "NVIDIA H100")
V100 = Device("cuda:1", "cuda", "torch", 16 * GB, 16 * GB, ("sm_70",), "2.13.0+cu130", "Tesla V100")
MPS = Device("mps", "mps", "torch", 16 * GB, 9 * GB, (), "2.13.0", "Apple M3")
MLX_GPU = Device("gpu", "gpu", "mlx", 16 * GB, 9 * GB, (), "0.32.4", "Apple M3")
NO_CUDA = Rejection("torch", "cuda", "no NVIDIA GPU")

LINUX = Survey((CPU, MLX_CPU), (NO_CUDA,))
SERVER = Survey((H100, V100, CPU, MLX_CPU), ())
MAC = Survey((MLX_GPU, MPS, CPU, MLX_CPU), (NO_CUDA,))

pytestmark = pytest.mark.usefixtures("clean_environment", "families")


def router(machine: Survey, **environment: str) -> BackendRouter:
    return BackendRouter(load(environment), survey=lambda: machine)


def where(plan: BackendPlan) -> str:
    return f"{plan.backend}:{plan.device}"


@pytest.mark.parametrize(
    ("machine", "expected", "dtype"),
    [
        (LINUX, "torch:cpu", "bfloat16"),
        (SERVER, "torch:cuda:0", "bfloat16"),
        (MAC, "mlx:gpu", "bfloat16"),
        (Survey((V100, CPU), ()), "torch:cuda:1", "float16"),
        (Survey((MPS, CPU), ()), "torch:mps", "bfloat16"),
        (Survey((OLD_CPU,), ()), "torch:cpu", "float32"),
        (Survey((MLX_CPU,), ()), "mlx:cpu", "float32"),
    ],
)
def test_detection_takes_the_fastest_device_and_its_dtype(machine, expected, dtype):
    plan = router(machine).select("Whisper-base")
    assert (where(plan), plan.dtype) == (expected, dtype)
    assert plan.reason and plan.memory_bytes > 0
    assert {(r.backend, r.device) for r in plan.rejected} == (
        {(d.backend, d.name) for d in machine.devices} | {(r.backend, r.device) for r in machine.missing}
    ) - {(plan.backend, plan.device)}
    assert all(r.reason for r in plan.rejected)


@pytest.mark.parametrize(
    ("machine", "asked", "expected"),
    [
        (SERVER, {"backend": "torch"}, "torch:cuda:0"),
        (SERVER, {"backend": "mlx"}, "mlx:cpu"),
        (SERVER, {"backend": "cpu"}, "torch:cpu"),
        (SERVER, {"backend": "CUDA"}, "torch:cuda:0"),
        (SERVER, {"backend": "cuda:1"}, "torch:cuda:1"),
        (SERVER, {"backend": "torch:cuda:01"}, "torch:cuda:1"),
        (SERVER, {"backend": "torch", "device": "cpu"}, "torch:cpu"),
        (SERVER, {"device": "cuda:1"}, "torch:cuda:1"),
        (SERVER, {"backend": "auto", "device": "cpu"}, "torch:cpu"),
        (SERVER, {"backend": "gpu"}, "torch:cuda:0"),
        (MAC, {"backend": "mps"}, "torch:mps"),
        (MAC, {"backend": "metal"}, "torch:mps"),
        (MAC, {"backend": "mlx:gpu"}, "mlx:gpu"),
        (MAC, {"backend": "mlx", "device": "cpu"}, "mlx:cpu"),
        (MAC, {"backend": "torch"}, "torch:mps"),
    ],
)
def test_an_argument_is_obeyed(machine, asked, expected):
    plan = router(machine).select("Whisper-base", **asked)
    assert where(plan) == expected
    assert "asked for by the argument" in plan.reason


@pytest.mark.parametrize(
    ("machine", "asked"),
    [
        (LINUX, {"backend": "cuda"}),
        (LINUX, {"backend": "mlx:gpu"}),
        (SERVER, {"backend": "cuda:7"}),
        (SERVER, {"device": "mps"}),
        (Survey((CPU,), ()), {"backend": "mlx"}),
    ],
)
def test_what_was_asked_for_and_is_not_here_raises_and_lists_the_rest(machine, asked):
    with pytest.raises(BackendUnavailableError) as caught:
        router(machine).select("Whisper-base", **asked)
    assert "torch:cpu" in caught.value.hint
    assert all(r.reason in str(caught.value) for r in machine.missing)


def test_the_environment_is_obeyed_but_an_argument_goes_first():
    routes = router(SERVER, IZWI_BACKEND="cpu")
    plan = routes.select("Whisper-base")
    assert where(plan) == "torch:cpu" and "IZWI_BACKEND" in plan.reason
    assert where(routes.select("Whisper-base", backend="cuda:1")) == "torch:cuda:1"
    assert where(routes.select("Whisper-base", backend="auto")) == "torch:cpu"
    assert where(routes.select("Whisper-base", device="cuda")) == "torch:cuda:0"


def test_the_configuration_file_comes_after_the_environment(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('backend = "mlx"\ndtype = "float32"\n')
    plan = router(SERVER, IZWI_CONFIG=str(file)).select("Whisper-base")
    assert where(plan) == "mlx:cpu" and "c.toml" in plan.reason
    plan = router(SERVER, IZWI_CONFIG=str(file), IZWI_BACKEND="torch").select("Whisper-base")
    assert (where(plan), plan.dtype) == ("torch:cuda:0", "float32")


def test_a_router_without_settings_reads_them_at_each_call(monkeypatch):
    routes = BackendRouter(survey=lambda: SERVER)
    assert where(routes.select("Whisper-base")) == "torch:cuda:0"
    monkeypatch.setenv("IZWI_BACKEND", "mlx")
    assert where(routes.select("Whisper-base")) == "mlx:cpu"


def test_an_environment_that_asks_for_what_is_not_here_raises():
    with pytest.raises(BackendUnavailableError, match="IZWI_BACKEND"):
        router(LINUX, IZWI_BACKEND="cuda").select("Whisper-base")


def test_the_mlx_switch_prefers_or_forbids():
    assert where(router(SERVER, IZWI_ENABLE_MLX_RUNTIME="1").select("Whisper-base")) == "mlx:cpu"
    plan = router(MAC, IZWI_ENABLE_MLX_RUNTIME="0").select("Whisper-base")
    assert where(plan) == "torch:mps"
    assert {r.reason for r in plan.rejected if r.backend == "mlx"} == {"IZWI_ENABLE_MLX_RUNTIME forbids MLX"}


def test_an_argument_goes_before_the_mlx_switch_and_says_so():
    plan = router(MAC, IZWI_ENABLE_MLX_RUNTIME="0").select("Whisper-base", backend="mlx")
    assert where(plan) == "mlx:gpu" and "goes before IZWI_ENABLE_MLX_RUNTIME" in plan.reason


def test_two_variables_that_contradict_each_other_raise():
    with pytest.raises(InvalidInputError, match="IZWI_BACKEND asks for MLX and IZWI_ENABLE_MLX_RUNTIME forbids"):
        router(MAC, IZWI_BACKEND="mlx", IZWI_ENABLE_MLX_RUNTIME="0").select("Whisper-base")


def test_torch_serves_what_mlx_has_no_net_for_and_the_plan_says_so():
    plan = router(MAC, IZWI_BACKEND="mlx").select("Parakeet-TDT-0.6B-v3")
    assert where(plan) == "torch:mps"
    assert plan.reason.startswith("IZWI_BACKEND asks for mlx, but the family parakeet has no mlx net, so torch")
    plan = router(MAC).select("Parakeet-TDT-0.6B-v3")
    assert where(plan) == "torch:mps"
    assert "the family parakeet has no mlx net" in {r.reason for r in plan.rejected}


def test_an_argument_for_mlx_without_a_net_raises():
    with pytest.raises(BackendUnavailableError, match="has no mlx net") as caught:
        router(MAC).select("Parakeet-TDT-0.6B-v3", backend="mlx")
    assert "torch:mps, torch:cpu" in caught.value.hint


def test_a_file_that_prefers_mlx_gives_way_to_a_variable_that_forbids_it(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('backend = "mlx"\n')
    plan = router(MAC, IZWI_CONFIG=str(file), IZWI_ENABLE_MLX_RUNTIME="0").select("Whisper-base")
    assert where(plan) == "torch:mps" and "IZWI_ENABLE_MLX_RUNTIME forbids MLX, so torch serves it" in plan.reason


def test_a_family_of_a_later_release_raises_with_that_release():
    with pytest.raises(BackendUnavailableError, match=r"no family voxtral; it is planned for release 0\.7"):
        router(SERVER).select("voxtral")


def test_a_device_that_is_too_small_is_passed_over_unless_asked_for():
    machine = Survey((dataclasses.replace(V100, memory_bytes=6 * GB), CPU), ())
    gemma = catalog.get("Gemma-3-4b-it")
    plan = router(machine).select(gemma)
    assert where(plan) == "torch:cpu"
    assert any("needs 8.0 GB" in r.reason and "has 6.0 GB" in r.reason for r in plan.rejected)
    forced = router(machine).select(gemma, backend="cuda")
    assert where(forced) == "torch:cuda:1" and "may not fit" in forced.reason


def test_nothing_large_enough_raises_with_every_size():
    with pytest.raises(BackendUnavailableError, match=r"Nothing here can serve Gemma-3-4b-it.*\n.*needs 8\.0 GB"):
        router(Survey((dataclasses.replace(CPU, memory_bytes=4 * GB),), ())).select("Gemma-3-4b-it")


def test_memory_in_use_by_others_is_a_warning():
    busy = Survey((dataclasses.replace(CPU, available_bytes=10**8),), ())
    plan = router(busy).select("Whisper-large-v3-turbo")
    assert where(plan) == "torch:cpu" and "other programs use the memory" in plan.reason


def test_context_counts():
    smol = "SmolLM2-135M-Instruct"
    small, large = (router(LINUX).select(smol, context=n).memory_bytes for n in (100, 8192))
    assert large - small == 2 * 30 * 3 * 64 * (8192 - 100) * 2
    with pytest.raises(InvalidInputError, match="8192"):
        router(LINUX).select(smol, context=9000)


def test_a_dtype_is_obeyed_and_a_slow_one_is_said():
    assert router(LINUX).select("Whisper-base", dtype="float32").dtype == "float32"
    plan = router(Survey((OLD_CPU,), ())).select("Whisper-base", dtype="bfloat16")
    assert plan.dtype == "bfloat16" and "no fast bfloat16" in plan.reason


@pytest.mark.parametrize(
    "wrong",
    [
        {"backend": "tensorflow"},
        {"backend": "torch:"} | {"device": "warp"},
        {"backend": "mlx:npu"},
        {"device": "cuda:x"},
        {"device": ""},
        {"dtype": "int4"},
        {"dtype": ""},
        {"backend": "torch:cuda:0", "device": "cuda:1"},
        {"backend": "cpu", "device": "cuda"},
    ],
)
def test_words_that_mean_nothing_raise(wrong):
    with pytest.raises(InvalidInputError):
        router(SERVER).select("Whisper-base", **wrong)


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=20), st.one_of(st.none(), st.text(max_size=20)))
def test_any_words_are_a_choice_or_invalid(backend, device):
    try:
        choice = read_choice(backend, device, "test")
    except InvalidInputError:
        return
    assert choice.backend in (None, *ExecutionBackend)


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([LINUX, SERVER, MAC]),
    st.sampled_from([v.id for v in catalog.variants()]),
    st.sampled_from([None, "auto", "torch", "mlx", "cpu", "cuda", "cuda:1", "mps", "gpu", "torch:cpu", "mlx:gpu"]),
    st.sampled_from([None, True, False]),
)
def test_a_plan_names_a_device_of_the_machine_that_was_asked_for_or_raises(machine, name, backend, mlx):
    routes = BackendRouter(Settings(mlx=mlx), survey=lambda: machine)
    try:
        plan = routes.select(name, backend=backend)
    except BackendUnavailableError:
        assert backend not in (None, "auto", "cpu", "torch")
        return
    chosen = next(d for d in machine.devices if (d.backend, d.name) == (plan.backend, plan.device))
    assert read_choice(backend, None, "test").accepts(chosen)
    assert len({(r.backend, r.device) for r in plan.rejected}) == len(plan.rejected)


def test_quantisation_of_the_checkpoint_is_in_the_plan():
    assert router(MAC).select("Qwen3-0.6B-4bit").quantisation == "4bit"
    assert "4bit" in str(router(MAC).select("Qwen3-0.6B-4bit"))


def test_a_plan_reads_as_a_table_and_escapes_what_it_shows():
    plan = BackendPlan(
        "torch", "cpu", "float32", "<b>why</b>", rejected=(Rejection("mlx", "gpu", "<script>x</script>"),)
    )
    text, markup = str(plan), plan._repr_html_()
    assert text.splitlines()[0] == "runs on  torch on cpu, float32"
    assert "not      mlx on gpu: <script>x</script>" in text
    assert "<script>" not in markup and "&lt;b&gt;why" in markup and markup.startswith("<table>")


def test_the_backends_are_an_enum_of_their_names():
    assert list(ExecutionBackend) == ["torch", "mlx"]


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_open_backend_gives_the_one_that_was_planned(name):
    pytest.importorskip(name)
    opened = backends.open_backend(BackendPlan(name, "cpu", "float32", "test"))
    assert (opened.name, opened.device, opened.dtype) == (name, "cpu", "float32")


def test_open_backend_names_the_extra_of_a_missing_framework(monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "izwi_lab.backends.mlx_backend", raising=False)
    monkeypatch.setitem(sys.modules, "mlx", None)
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(MissingExtraError, match=r"izwi-lab\[mlx\]"):
        backends.open_backend(BackendPlan("mlx", "cpu", "float32", "test"))


def test_open_backend_refuses_a_backend_that_is_none():
    with pytest.raises(BackendUnavailableError, match="jax"):
        backends.open_backend(BackendPlan("jax", "cpu", "float32", "test"))
