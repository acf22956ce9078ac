"""Tokenizer and chat template of a text model, from a Hugging Face folder or from GGUF metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from izwi_lab.artifacts.tokenizer_json import read_tokenizer
from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.shared.detokenizer import TokenBytes, detokenize
from izwi_lab.families.shared.prompts import PromptEncoder
from izwi_lab.families.shared.steps import Prompt


@dataclass(frozen=True, slots=True)
class TextProcessor:
    """Text to ids and back. stop_ids: tokens that end an answer; template: Jinja, None where there is none."""

    tokenizer: Any
    encoder: PromptEncoder
    token_bytes: TokenBytes
    template: str | None
    stop_ids: frozenset[int]
    variables: Mapping[str, Any]

    def tokenize(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        template: bool,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: bool | None = None,
    ) -> Prompt:
        """See `TextModel.tokenize`."""
        if (tools or thinking is not None) and (not template or self.template is None):
            raise InvalidInputError(
                "Tools and a choice about thinking need a chat template, and none is used here.", hint="Leave them out."
            )
        if not template:
            if not isinstance(messages, str):
                raise InvalidInputError("template=False takes text, not messages.")
            return self.encoder.text(messages)
        if self.template is None:
            if isinstance(messages, str):
                return self.encoder.text(messages)  # a base model: it continues text
            raise InvalidInputError(
                "This model has no chat template: it continues text.", hint="Give plain text instead of messages."
            )
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.encoder.chat(self.template, messages, variables=self.variables, tools=tools, thinking=thinking)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens; control tokens show nothing."""
        return detokenize(self.token_bytes, tokens)


def from_gguf(path: Path, metadata: Mapping[str, Any], *, stops: Sequence[str] = ()) -> TextProcessor:
    """From the metadata of the GGUF file at `path`. stops: see `from_folder`."""
    from izwi_lab.artifacts.gguf_tokenizer import gguf_tokenizer

    tokenizer = gguf_tokenizer(path, metadata)
    ids = {n: metadata.get(f"tokenizer.ggml.{n}_token_id") for n in ("bos", "eos", "eot", "eom")}
    ends = [int(i) for n, i in ids.items() if i is not None and n != "bos"]
    variables = {f"{n}_token": tokenizer.id_to_token(int(i)) for n in ("bos", "eos") if (i := ids[n]) is not None}
    return _processor(tokenizer, metadata.get("tokenizer.chat_template"), ends, stops, variables)


def from_folder(folder: Path, config: Mapping[str, Any], *, stops: Sequence[str] = ()) -> TextProcessor:
    """From tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json of a folder.

    An answer ends at the `eos_token_id` of generation_config.json (else of config.json), at the tokenizer's
    `eos_token`, and at `stops`: control tokens of the family by name, as far as this tokenizer has them.

    Raises:
        CheckpointError: no tokenizer.json, or a file that cannot be read.
    """
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    settings = _json(folder / "tokenizer_config.json")
    generation = _json(folder / "generation_config.json")
    listed = generation.get("eos_token_id", config.get("eos_token_id"))
    ends = [listed] if isinstance(listed, int) else list(listed or [])
    named = {k: settings.get(k) for k in ("bos_token", "eos_token")}
    variables = {k: v["content"] if isinstance(v, Mapping) else v for k, v in named.items() if v}
    if (eos := tokenizer.token_to_id(variables.get("eos_token", ""))) is not None:
        ends.append(eos)
    return _processor(tokenizer, _template(folder, settings), ends, stops, variables)


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, chat_template.json (older multimodal checkpoints), or what tokenizer_config.json holds."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = _json(folder / "chat_template.json").get("chat_template") or settings.get("chat_template")
    if isinstance(template, list):  # several by name
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    return template


def _processor(
    tokenizer: Any, template: str | None, ends: Sequence[int], stops: Sequence[str], variables: Mapping[str, Any]
) -> TextProcessor:
    special = {t.content: i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special}
    stop_ids = frozenset([*ends, *(special[name] for name in stops if name in special)])
    return TextProcessor(
        tokenizer, PromptEncoder(tokenizer), TokenBytes(tokenizer), template, stop_ids, dict(variables)
    )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"Cannot read {path}: {error}.", hint="Fetch the model again.") from None
    return value if isinstance(value, dict) else {}
