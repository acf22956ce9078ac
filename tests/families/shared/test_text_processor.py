"""What a folder says of its tokenizer: which tokens end an answer, where the chat template is, what it may use."""

from __future__ import annotations

import json

import pytest
from family_checkpoints import SPECIAL, TEMPLATE, write_tokenizer

from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.shared.text_processor import from_folder

TURNS = [{"role": "user", "content": "t"}]


@pytest.fixture
def folder(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    return tmp_path


def write(folder, name, **values):
    (folder / f"{name}.json").write_text(json.dumps(values))


def test_an_answer_ends_where_the_files_and_the_family_say(folder):
    assert from_folder(folder, {}).stop_ids == frozenset()
    assert from_folder(folder, {"eos_token_id": 9}).stop_ids == {9}
    write(folder, "generation_config", eos_token_id=[1, 5])
    assert from_folder(folder, {"eos_token_id": 9}).stop_ids == {1, 5}, "generation_config.json comes first"
    write(folder, "tokenizer_config", eos_token="<|im_end|>")
    assert from_folder(folder, {}).stop_ids == {1, 5, 2}
    assert from_folder(folder, {}, stops=("<|endoftext|>", "<end_of_turn>", "th")).stop_ids == {1, 5, 2, 0}, (
        "only control tokens that the tokenizer has"
    )


def test_the_template_is_found_wherever_it_is(folder):
    said = []
    with pytest.raises(InvalidInputError, match="Give plain text instead of messages"):
        from_folder(folder, {}).tokenize(TURNS, template=True)
    write(folder, "tokenizer_config", chat_template=TEMPLATE)
    said.append(from_folder(folder, {}).template)
    write(folder, "tokenizer_config", chat_template=[{"name": "default", "template": TEMPLATE}, {"name": "x"}])
    said.append(from_folder(folder, {}).template)
    write(folder, "tokenizer_config")
    write(folder, "chat_template", chat_template=TEMPLATE)
    said.append(from_folder(folder, {}).template)
    (folder / "chat_template.json").unlink()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    said.append(from_folder(folder, {}).template)
    assert said == [TEMPLATE] * 4


def test_templates_may_use_the_begin_and_end_tokens(folder):
    begin = {"content": SPECIAL[1], "special": True}
    write(
        folder,
        "tokenizer_config",
        bos_token=begin,
        eos_token=SPECIAL[2],
        chat_template="{{ bos_token }}t{{ eos_token }}",
    )
    assert from_folder(folder, {}).tokenize(TURNS, template=True).ids[[0, -1]].tolist() == [1, 2]


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_config", "generation_config"])
def test_damaged_files_are_named(folder, name):
    (folder / f"{name}.json").write_text("{")
    with pytest.raises(CheckpointError, match=rf"Cannot read .*{name}\.json"):
        from_folder(folder, {})


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        from_folder(tmp_path, {})
