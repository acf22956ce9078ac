"""The model router: catalog names, folders, hub repos, defaults, and what it refuses."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from safetensors.numpy import save_file

from izwi_lab import catalog
from izwi_lab.catalog.variant import Family, Layout, Task
from izwi_lab.errors import (
    ArtifactError,
    InvalidInputError,
    NotDownloadedError,
    UnknownModelError,
    WrongTaskError,
)
from izwi_lab.runtime import load, recognise
from izwi_lab.runtime.model_router import ModelRouter
from izwi_lab.settings import Settings


@pytest.fixture
def router(tmp_path: Path) -> ModelRouter:
    return ModelRouter(Settings(), models_dir=tmp_path / "models")


def checkpoint(folder: Path, config: dict, tensors: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({"w": np.zeros(tensors, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("task", "id"),
    [(Task.TTS, "Kokoro-82M"), (Task.ASR, "Whisper-base"), (Task.CHAT, "SmolLM2-135M-Instruct")],
)
def test_every_task_has_a_default(router, task, id):
    route = router.route(None, task=task)
    assert route.variant.id == id
    assert route.key.source == id
    assert route.plan.reason


def test_names_repos_and_variants_resolve_to_the_same(router):
    variant = catalog.get("Whisper-base")
    for name in ("Whisper-base", "whisper base", variant.repo, variant):
        assert router.route(name, task=Task.ASR).variant is variant
        assert router.source(name) == "Whisper-base"


@pytest.mark.parametrize("name", ["whisper-bsae", "", " ", "gpt-4o-transcribe"])
def test_unknown_names_raise_and_are_never_answered_by_another_model(router, name):
    with pytest.raises((UnknownModelError, InvalidInputError)):
        router.route(name, task=Task.ASR)


def test_the_wrong_task_names_models_that_do_it(router):
    with pytest.raises(WrongTaskError, match=r"Kokoro-82M does tts, not asr.*Whisper-base"):
        router.route("Kokoro-82M", task=Task.ASR)


def test_no_default_without_a_task(router):
    with pytest.raises(InvalidInputError):
        router.route(None)


def test_devices_dtypes_and_formats_are_different_models_in_memory(router):
    keys = {
        router.route("Kokoro-82M", backend="torch", device="cpu", dtype="float32").key,
        router.route("Kokoro-82M", backend="torch", device="cpu", dtype="bfloat16").key,
        router.route("Kokoro-82M", backend="torch", device="cpu", dtype="float32", load_format="dummy").key,
    }
    assert len(keys) == 3


def test_missing_weights_without_download(router):
    route = router.route("SmolLM2-135M-Instruct")
    with pytest.raises(NotDownloadedError, match="izwi-lab pull SmolLM2-135M-Instruct"):
        router.obtain(route, download=False)
    dummy = router.route("SmolLM2-135M-Instruct", load_format="dummy")
    assert router.obtain(dummy, download=False) is None


def test_load_formats_are_checked():
    with pytest.raises(InvalidInputError, match="auto"):
        load.check_load_format("pickle")


# folders


def test_a_folder_is_recognised_by_its_config(router, tmp_path):
    config = catalog.config(catalog.get("SmolLM2-135M-Instruct"))
    folder = checkpoint(tmp_path / "my-finetune", config | {"hidden_size": 64, "num_hidden_layers": 2})
    route = router.route(str(folder), task=Task.CHAT)
    variant = route.variant
    assert (variant.id, variant.family, variant.tasks) == ("my-finetune", Family.LLAMA, (Task.CHAT,))
    assert variant.layout is Layout.HF
    assert variant.size_bytes == sum(f.stat().st_size for f in folder.iterdir())
    assert variant.starter is None
    assert variant.licence == ""
    assert variant.parameters is None
    assert route.folder == folder
    assert route.key.source == str(folder)
    assert router.obtain(route).folder == folder


def test_relative_paths_and_path_objects(router, tmp_path, monkeypatch):
    folder = checkpoint(tmp_path / "a" / "b", catalog.config(catalog.get("Whisper-base")))
    monkeypatch.chdir(tmp_path)
    for name in ("./a/b", Path("a/b"), "a/b", folder):
        route = router.route(name, task=Task.ASR)
        assert route.variant.family is Family.WHISPER
        assert route.key.source == str(folder)
    assert route.variant.parameters == catalog.get("Whisper-base").parameters
    with pytest.raises(WrongTaskError):
        router.route("./a/b", task=Task.TTS)


OFFICIAL = [v for v in catalog.variants(include_disabled=True) if catalog.has_config(v)]


@pytest.mark.parametrize("variant", [v for v in OFFICIAL if "model_type" in catalog.config(v)], ids=str)
def test_every_official_config_is_recognised_as_its_own_family_and_tasks(tmp_path, variant):
    config = catalog.config(variant)
    found = recognise.folder(checkpoint(tmp_path / "model", config))
    assert (found.family, found.tasks, found.quantisation) == (variant.family, variant.tasks, variant.quantisation)
    assert found.settings == variant.settings


def test_layouts_of_one_family_need_no_config(tmp_path):
    (tmp_path / "kokoro-v1_0.pth").write_bytes(b"PK")
    (tmp_path / "config.json").write_text("{}")
    assert recognise.folder(tmp_path).family is Family.KOKORO


def test_an_unknown_family_lists_those_that_are_known(router, tmp_path):
    folder = checkpoint(tmp_path / "x", {"model_type": "mamba", "architectures": ["MambaForCausalLM"]})
    with pytest.raises(UnknownModelError, match=r"'mamba'.*Known model types: .*llama.*whisper"):
        router.route(folder)


def test_folders_that_hold_no_model(router, tmp_path):
    with pytest.raises(UnknownModelError, match="no folder"):
        router.route(tmp_path / "absent")
    for name in ("/" + "x" * 5000, "./a\0b", "~no-such-user-here/model"):
        with pytest.raises(UnknownModelError, match="is no folder"):
            router.route(name)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"notes\.txt"):
        router.route(tmp_path)
    broken = tmp_path / "broken"
    checkpoint(broken, {})
    (broken / "config.json").write_text("{")
    with pytest.raises(ArtifactError):
        router.route(broken)


# the hub, on this machine

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(BaseHTTPRequestHandler):
    """Two repos: one with a llama-shaped model, one with nothing that is understood."""

    files: ClassVar[dict[str, dict[str, bytes]]] = {}
    asked: ClassVar[list[str]] = []

    def log_message(self, *args: object) -> None:
        pass

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        for repo, files in self.files.items():
            if path in (f"/api/models/{repo}/revision/main", f"/api/models/{repo}/revision/{COMMIT}"):
                siblings = [{"rfilename": n, "size": len(b)} for n, b in files.items()]
                body = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
                return self._send(200, json.dumps(body).encode(), Content_Type="application/json")
            name = path.removeprefix(f"/{repo}/resolve/{COMMIT}/")
            if name in files:
                return self._send(200, files[name], ETag=f'"{name}"', X_Repo_Commit=COMMIT)
        return self._send(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("IZWI_MODELS_DIR", str(tmp_path / "models"))
    folder = checkpoint(tmp_path / "src", catalog.config(catalog.get("SmolLM2-135M-Instruct")) | {"vocab_size": 8})
    files = {f.name: f.read_bytes() for f in folder.iterdir()}
    monkeypatch.setattr(FakeHub, "files", {"someone/small-llama": files, "someone/empty": {"README.md": b"x"}})
    monkeypatch.setattr(FakeHub, "asked", [])
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_repo_outside_the_catalog(router, hub):
    route = router.route("someone/small-llama", task=Task.CHAT)
    variant = route.variant
    assert (variant.family, variant.revision, variant.repo) == (Family.LLAMA, COMMIT, "someone/small-llama")
    assert not any("model.safetensors" in path for path in FakeHub.asked), "only the config is read to recognise it"
    local = router.obtain(route)
    assert {"config.json", "model.safetensors"} <= {f.name for f in local.folder.iterdir()}
    hub.shutdown()
    again = ModelRouter(Settings(), models_dir=router._models_dir)
    kept = again.route("someone/small-llama", task=Task.CHAT)
    assert kept.variant.revision == COMMIT
    assert again.obtain(kept, download=False).folder == local.folder


def test_hub_repos_that_hold_nothing_or_do_not_exist(router, hub):
    with pytest.raises(ArtifactError, match=r"config\.json with \.safetensors"):
        router.route("someone/empty")
    with pytest.raises(ArtifactError, match="no repo someone/absent"):
        router.route("someone/absent")
