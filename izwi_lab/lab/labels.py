"""Tokens and prompts as a reader sees them."""

from __future__ import annotations

from collections.abc import Iterable

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.steps import Prompt
from izwi_lab.families.shared.text_model import Messages, TextModel

_SHOWN = str.maketrans({" ": "\u00b7", "\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d"})


def labels(model: TextModel, ids: Iterable[int]) -> tuple[str, ...]:
    """A label per id: its text with spaces and line ends made visible; bytes in hex where they are no text.

    Without a tokenizer the id itself.
    """
    return tuple(_label(model, int(token)) for token in ids)


def _label(model: TextModel, token: int) -> str:
    if model.processor is None:
        return str(token)
    said = model.processor.token_bytes(token)
    if not said:
        return model.text(token) or str(token)
    try:
        return said.decode().translate(_SHOWN)
    except UnicodeDecodeError:  # part of a character
        return "".join(f"<{byte:02X}>" for byte in said)


def check_text_model(model: object) -> None:
    """Raise InvalidInputError for what is no text model."""
    if not isinstance(model, TextModel):
        raise InvalidInputError(
            f"This looks into text models, got {model!r:.80}.", hint="model.tap(...) reads intermediates of any family."
        )


def as_prompt(model: TextModel, prompt: Messages | Prompt) -> Prompt:
    """A Prompt as it is; text or messages through the chat template, or as they are where there is none."""
    check_text_model(model)
    if isinstance(prompt, Prompt):
        return prompt
    plain = isinstance(prompt, str) and model.text_processor().template is None
    return model.tokenize(prompt, template=not plain)
