"""Chat models without weights: a tiny tokenizer, templates in the manner of Qwen3 and LFM2, and answers by script."""

from __future__ import annotations

import numpy as np
from tiny_text import table_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from izwi_lab.families.shared.detokenizer import TokenBytes
from izwi_lab.families.shared.prompts import PromptEncoder
from izwi_lab.families.shared.text_model import TextModel
from izwi_lab.families.shared.text_processor import TextProcessor

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
LFM2_SPECIAL = ["<|tool_call_start|>", "<|tool_call_end|>", "<|tool_response_start|>", "<|tool_response_end|>"]
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN = (
    "{% if tools %}<|im_start|>system\n<tools>{% for t in tools %}\n{{ t | tojson }}{% endfor %}\n</tools><|im_end|>\n"
    "{% endif %}{% for m in messages %}"
    "{% if m.role == 'assistant' %}{% set said = m.content %}"
    "{% if '</think>' in said %}{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|im_start|>assistant\n{% if m.reasoning_content and loop.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ said }}{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": '
    "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}{{ c.function.arguments | tojson }}"
    "{% endif %}}\n</tool_call>{% endfor %}<|im_end|>\n"
    "{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LFM2 = (
    "{% if tools %}<|im_start|>system\nList of tools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"enum": [1, 2, 3]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}


def tokenizer_of(special=SPECIAL, marks=()):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({c: i for i, c in enumerate([*letters, "Ġt", "th"])}, [("Ġ", "t"), ("t", "h")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in marks])
    return made


def processor_of(tokenizer, template):
    stops = frozenset(tokenizer.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>"))
    return TextProcessor(tokenizer, PromptEncoder(tokenizer), TokenBytes(tokenizer), template, stops, {})


class Scripted(TextModel):
    """Says what it is told to, as far as a grammar lets it; counts the ids it reads."""

    script = ()
    read = 0

    def sample(self, session, step, sampling=None, *, allowed=None):
        token = self.script[len(session.tokens)]
        assert allowed is None or allowed.view(np.uint32)[token // 32] >> (token % 32) & 1, f"{token} is not allowed"
        return token

    def prefill(self, session, prompt, *, cancel=None):
        self.read += len(prompt)
        return super().prefill(session, prompt, cancel=cancel)


def chat_model(template=PLAIN, *, special=SPECIAL, marks=(), kind=Scripted, rows=None, context=600):
    """A model of the template. rows: logits after each token, random from a seed where none are given."""
    tokenizer = tokenizer_of(special, marks)
    size = tokenizer.get_vocab_size()
    table = np.random.default_rng(7).standard_normal((size, size)) * 2 if rows is None else rows
    bare = table_model(table, context)
    return kind(bare.variant, bare.plan, bare.backend, bare.net, bare.config, processor_of(tokenizer, template))


def qwen(**options):
    return chat_model(QWEN, marks=QWEN_MARKS, **options)


def lfm2(**options):
    return chat_model(LFM2, special=[*SPECIAL, *LFM2_SPECIAL], **options)


def ids_of(model, text):
    """Tokens of a text, with control tokens where it names them."""
    return model.processor.tokenizer.encode(text, add_special_tokens=False).ids


def letters(model, text):
    """Tokens of a text that spell control tokens out."""
    return model.processor.encoder.text(text, special_tokens=False).ids.tolist()


def says(model, *parts, end="<|im_end|>"):
    """Set the script: texts with control tokens, or lists of ids."""
    said = [i for p in (*parts, end) for i in (ids_of(model, p) if isinstance(p, str) else p)]
    model.script = (*said, *[model.processor.tokenizer.token_to_id("<|im_end|>")] * 50)
    return model
