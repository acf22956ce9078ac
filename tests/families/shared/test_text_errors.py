"""Text checkpoints with something wrong: each error names what was expected and what came."""

from __future__ import annotations

import json
import shutil

import pytest
from family_checkpoints import CASES, open_family, write_folder
from tiny_quantised import write_gguf

from izwi_lab.errors import CheckpointError, InvalidInputError

FAMILIES = ("llama", "qwen3", "gemma3", "lfm2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: write_folder(tmp_path_factory.mktemp(name), name) for name in FAMILIES}


def changed(folder, tmp_path, **values):
    """A copy whose config.json says otherwise; None takes a field out."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | values
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return tmp_path


@pytest.mark.parametrize("name", FAMILIES)
def test_another_model_type(folders, name, tmp_path):
    with pytest.raises(CheckpointError, match=f"'mamba'.*{name}"):
        open_family(name, changed(folders[name], tmp_path, model_type="mamba"))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_missing_field(folders, name, tmp_path):
    with pytest.raises(CheckpointError, match=r"lacks 'num_hidden_layers'"):
        open_family(name, changed(folders[name], tmp_path, num_hidden_layers=None))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_field_of_another_kind(folders, name, tmp_path):
    with pytest.raises(CheckpointError, match=r"'many' for 'hidden_size'; a number"):
        open_family(name, changed(folders[name], tmp_path, hidden_size="many"))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_unknown_rope(folders, name, tmp_path):
    wrong = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}
    ropes = {"full_attention": wrong, "sliding_attention": wrong} if name == "gemma3" else wrong
    with pytest.raises(CheckpointError, match=r"'yarn'.*Supported"):
        open_family(name, changed(folders[name], tmp_path, rope_parameters=ropes))


@pytest.mark.parametrize("name", FAMILIES)
def test_another_config_than_the_weights_is_a_table(folders, name, tmp_path):
    folder = changed(folders[name], tmp_path, vocab_size=321)
    with pytest.raises(CheckpointError, match=r"shape +model.embed_tokens.weight +expected \[321, 64\], found \[320"):
        open_family(name, folder)


@pytest.mark.parametrize("name", ["qwen3-old-untied", "gemma3-images-old", "lfm2-old"])
def test_a_missing_shard(name, tmp_path):
    folder = write_folder(tmp_path, name, shard="100KB")
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=lost.name):
        open_family(name, folder)


def test_gguf_files_of_another_architecture(tmp_path):
    write_gguf(tmp_path, "qwen3", "F16")
    for name in ("llama", "gemma3", "lfm2"):
        with pytest.raises(CheckpointError, match=f"'qwen3' model.*architecture {name}"):
            open_family(name, tmp_path)


def test_layouts_that_a_text_family_does_not_have(folders):
    with pytest.raises(CheckpointError, match="layout 'nemo'"):
        open_family("qwen3", folders["qwen3"], layout="nemo")
    with pytest.raises(InvalidInputError, match="needs its files"):
        open_family("qwen3", None, layout="hf")


def test_a_model_without_a_template_continues_text_and_refuses_messages(folders, tmp_path):
    shutil.copytree(folders["gemma3"], tmp_path, dirs_exist_ok=True)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({k: v for k, v in json.loads(settings.read_text()).items() if "template" not in k}))
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    model = open_family("gemma3", tmp_path)
    assert model.tokenize("On and").ids.tolist() == model.tokenize("On and", template=False).ids.tolist()
    with pytest.raises(InvalidInputError, match="plain text instead of messages"):
        model.tokenize([{"role": "user", "content": "On and"}])


def test_the_cases_cover_every_family():
    assert {family for family, *_ in CASES.values()} == set(FAMILIES)


# A list of that length would be made before anything noticed; the rest would be an error of Python's.
HOSTILE = {
    "num_hidden_layers": 100_000_000_000,
    "hidden_size": -1,
    "num_attention_heads": 0,
    "max_position_embeddings": 0,
    "vocab_size": 1 << 40,
    "head_dim": 1 << 40,
    "layer_types": 7,
    "rope_theta": 1e300,
}


HOSTILE_CASES = [(n, f) for n in FAMILIES for f in HOSTILE if n == "llama" or f != "rope_theta"]


@pytest.mark.parametrize(("name", "field"), [case for case in HOSTILE_CASES if case != ("llama", "layer_types")])
def test_sizes_that_no_model_has(folders, name, field, tmp_path):
    absent = {"num_hidden_layers": "layer_types", "rope_theta": "rope_parameters"}.get(field, "unused")
    shown = {"max_position_embeddings": "max_positions"}.get(field, field)
    with pytest.raises(CheckpointError, match=rf"says .* for '?{shown}"):
        open_family(name, changed(folders[name], tmp_path, **{absent: None, field: HOSTILE[field]}))


def test_layer_types_that_do_not_fit_are_said_plainly(folders, tmp_path):
    with pytest.raises(CheckpointError, match=r"lists 1 layer types for \d+ layers\.$"):
        open_family("qwen3", changed(folders["qwen3"], tmp_path, layer_types=["full_attention"]))
