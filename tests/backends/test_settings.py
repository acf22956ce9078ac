"""Settings: the environment over a TOML file, every value checked, nothing unknown passed over."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from izwi_lab import settings
from izwi_lab.errors import InvalidInputError

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture
def config(tmp_path):
    def write(text: str) -> dict[str, str]:
        file = tmp_path / "config.toml"
        file.write_text(text, "utf-8")
        return {"IZWI_CONFIG": str(file)}

    return write


def test_nothing_set_is_nothing_asked():
    assert settings.load({}) == settings.Settings()


def test_a_file_sets_every_key_and_says_it_did(config):
    env = config(
        'backend = "mlx:gpu"\ndevice = "gpu"\ndtype = "float16"\nmodels_dir = "~/m"\nidle_ttl_s = 30\n'
        'memory_budget = "1.5 GB"\nthreads = 3\n'
    )
    found = settings.load(env)
    assert (found.backend, found.device, found.dtype, found.threads) == ("mlx:gpu", "gpu", "float16", 3)
    assert (found.models_dir, found.idle_ttl_s, found.memory_budget) == (Path.home() / "m", 30.0, 1_500_000_000)
    assert set(found.sources.values()) == {env["IZWI_CONFIG"]} and len(found.sources) == 7


def test_the_environment_wins_over_the_file(config):
    env = config('backend = "mlx"\ndevice = "gpu"\nthreads = 3\nmodels_dir = "/file"\n')
    env |= {"IZWI_BACKEND": "torch", "IZWI_NUM_THREADS": "5", "IZWI_MODELS_DIR": "/env"}
    found = settings.load(env)
    assert (found.backend, found.threads, found.models_dir) == ("torch", 5, Path("/env"))
    assert found.device is None, "the file's device went with the file's backend"
    assert dict(found.sources) == {
        "backend": "IZWI_BACKEND",
        "threads": "IZWI_NUM_THREADS",
        "models_dir": "IZWI_MODELS_DIR",
    }


def test_the_file_in_the_home_folder_is_read_without_being_named(tmp_path):
    file = tmp_path / ".config" / "izwi" / "config.toml"  # HOME is tmp_path here
    file.parent.mkdir(parents=True)
    file.write_text('dtype = "float32"\n')
    assert settings.load({}).dtype == "float32"
    assert settings.config_path({}) == file


@pytest.mark.parametrize(("text", "mlx"), [("1", True), ("true", True), ("ON", True), ("0", False), ("no", False)])
def test_the_mlx_switch(text, mlx):
    assert settings.load({"IZWI_ENABLE_MLX_RUNTIME": text}).mlx is mlx


def test_an_empty_variable_is_not_set():
    assert settings.load({"IZWI_BACKEND": " ", "IZWI_ENABLE_MLX_RUNTIME": ""}) == settings.Settings()


@pytest.mark.parametrize(
    "text",
    [
        "cuda = true",
        "mlx = true",
        "[backend]\nname = 'torch'",
        "backend = 3",
        "backend = ''",
        "threads = 0",
        "threads = true",
        "threads = 1.5",
        "idle_ttl_s = -1",
        "idle_ttl_s = nan",
        "idle_ttl_s = inf",
        "memory_budget = 0",
        "memory_budget = '0.1 B'",
        "memory_budget = '12 parsecs'",
        "memory_budget = '12 iB'",
        f"memory_budget = '{'9' * 400} GB'",
        "models_dir = '~no-such-user-here/models'",
        "memory_budget = true",
        "backend = ",
    ],
)
def test_a_wrong_file_raises_and_names_itself(config, text):
    env = config(text)
    with pytest.raises(InvalidInputError, match=r"config\.toml"):
        settings.load(env)


def test_an_unknown_key_is_answered_with_the_known_ones(config):
    with pytest.raises(InvalidInputError, match=r"'bakend'.*backend, device, dtype, models_dir") as caught:
        settings.load(config('bakend = "torch"'))
    assert "mlx" not in caught.value.hint


@pytest.mark.parametrize(
    ("variable", "value"),
    [("IZWI_NUM_THREADS", "many"), ("IZWI_NUM_THREADS", "²"), ("IZWI_ENABLE_MLX_RUNTIME", "maybe")],
)
def test_a_wrong_variable_raises_and_is_named(variable, value):
    with pytest.raises(InvalidInputError, match=variable):
        settings.load({variable: value})


def test_a_named_file_must_be_there_and_be_text(tmp_path):
    with pytest.raises(InvalidInputError, match="no file"):
        settings.load({"IZWI_CONFIG": str(tmp_path / "none.toml")})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "binary.toml", tmp_path):
        with pytest.raises(InvalidInputError, match="cannot be read"):
            settings.load({"IZWI_CONFIG": str(path)})


@pytest.mark.parametrize(
    ("written", "size"),
    [("5", 5), ("5 B", 5), ("2kb", 2000), ("2 KiB", 2048), ("3MB", 3_000_000), ("0.5 GiB", 2**29), ("1 GB", 10**9)],
)
def test_sizes_with_units(config, written, size):
    assert settings.load(config(f'memory_budget = "{written}"')).memory_budget == size


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["IZWI_BACKEND", "IZWI_NUM_THREADS", "IZWI_ENABLE_MLX_RUNTIME"]), st.text()))
def test_any_environment_is_read_or_raises_invalid_input(env):
    try:
        found = settings.load(env)
    except InvalidInputError:
        return
    assert found.threads is None or found.threads >= 1


def test_an_empty_name_of_a_file_is_no_name(tmp_path):
    assert settings.load({"IZWI_CONFIG": ""}) == settings.Settings()


@pytest.mark.parametrize(("written", "size"), [('"2 GB"', 2_000_000_000), ("0", 0), ('"0"', 0), ("512", 512)])
def test_the_prompt_cache_may_be_switched_off(config, written, size):
    assert settings.load(config(f"prompt_cache = {written}")).prompt_cache == size


@pytest.mark.parametrize("written", ["-1", "false", '"all"', "1.5"])
def test_the_prompt_cache_is_a_size(config, written):
    with pytest.raises(InvalidInputError, match="prompt_cache"):
        settings.load(config(f"prompt_cache = {written}"))
