"""Tokenizer and chat template of a text model, from a Hugging Face folder or from GGUF metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    def tokenize(self, messages: str | Sequence[Mapping[str, Any]], *, template: bool) -> Prompt:
        """See `TextModel.tokenize`."""
        if not template:
            if not isinstance(messages, str):
                raise InvalidInputError("template=False takes text, not messages.")
            return self.encoder.text(messages)
        if self.template is None:
            raise InvalidInputError(
                "This model has no chat template: it continues text.", hint="Give text with template=False."
            )
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.encoder.chat(self.template, messages, variables=self.variables)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens; control tokens show nothing."""
        return detokenize(self.token_bytes, tokens)


def from_gguf(path: Path, metadata: Mapping[str, Any]) -> TextProcessor:
    """From the metadata of the GGUF file at `path`."""
    from izwi_lab.artifacts.gguf_tokenizer import gguf_tokenizer

    tokenizer = gguf_tokenizer(path, metadata)
    stops = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    named = {n: metadata.get(f"tokenizer.ggml.{n}_token_id") for n in ("bos", "eos")}
    variables = {f"{n}_token": tokenizer.id_to_token(int(i)) for n, i in named.items() if i is not None}
    return _processor(
        tokenizer, metadata.get("tokenizer.chat_template"), [int(s) for s in stops if s is not None], variables
    )


def from_folder(folder: Path, config: Mapping[str, Any]) -> TextProcessor:
    """From tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json of a folder."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json.", hint="Fetch the model again.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"Cannot read {path}: {error}.", hint="Fetch the model again.") from None
    settings = _json(folder / "tokenizer_config.json")
    generation = _json(folder / "generation_config.json")
    template_file = folder / "chat_template.jinja"
    template = template_file.read_text(encoding="utf-8") if template_file.is_file() else settings.get("chat_template")
    if isinstance(template, list):  # several by name
        template = next((t["template"] for t in template if t.get("name") == "default"), None)
    stops = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = [stops] if isinstance(stops, int) else list(stops or [])
    named = {k: settings.get(k) for k in ("bos_token", "eos_token")}
    variables = {k: v["content"] if isinstance(v, Mapping) else v for k, v in named.items() if v}
    if (eos := tokenizer.token_to_id(variables.get("eos_token", ""))) is not None:
        ids.append(eos)
    return _processor(tokenizer, template, ids, variables)


def _processor(
    tokenizer: Any, template: str | None, stop_ids: Sequence[int], variables: Mapping[str, Any]
) -> TextProcessor:
    # The end of a chat turn ends an answer, whatever the file says of eos.
    turns = [tokenizer.token_to_id(t) for t in ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>")]
    stops = frozenset([*stop_ids, *(t for t in turns if t is not None)])
    return TextProcessor(tokenizer, PromptEncoder(tokenizer), TokenBytes(tokenizer), template, stops, dict(variables))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"Cannot read {path}: {error}.", hint="Fetch the model again.") from None
    return value if isinstance(value, dict) else {}
