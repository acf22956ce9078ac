"""Makes golden_gemma3_270m.json: ids and greedy tokens from the starter GGUF. Usage: gemma3_golden.py FILE

The tokens, and the ids of TEXTS, come from transformers' own reading of the file: its tokenizer, configuration and
weights dequantised to float32. The ids of LEFT_TO_RIGHT come from llama.cpp: there transformers does not take the
longest token that was defined by hand, as SentencePiece (which trained this tokenizer) does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small café by the sea, 日本から来た",
)
# What a rebuilt tokenizer gets wrong first: runs of spaces and newlines, bytes, emoji, marks, control tokens.
TEXTS = (
    "",
    " ",
    "Hello, world!",
    "  two  spaces   three    four",
    "line\nline\n\nline\n\n\n\tTab\r\n",
    "naïve café Ωmega ŽLUŤOUČKÝ",
    "日本語のテキスト、漢字とかな。 한국어 텍스트",
    "😀👩‍👩‍👧‍👦🇫🇷 \U0001fae8",
    "\u0000\u0007\u200b\ufeff\U000e0041",
    "1234567890 3.14159 1,000,000",
    "<start_of_turn>user\nhi<end_of_turn>",
    "<b>bold</b> <unused3> [multimodal] <pad>",
    "for (int i=0;i<10;++i){x[i]+=1;} // ok",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "Ünïcödé ﬁ ﬀ ½ ² ℌ",
    "ـمرحباـ שלום नमस्ते ไทย",
)
LEFT_TO_RIGHT = ("▁already▁spaced ▁", " " * 68 + "deep")


def golden(path: Path) -> dict:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    said = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.inference_mode():
            out = model.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :]
        said.append({"prompt": prompt, "ids": ids[0].tolist(), "tokens": out.tolist()})
    return {
        "said": said,
        "texts": [{"text": t, "ids": tokenizer(t).input_ids} for t in TEXTS],
        "left_to_right": [{"text": t, "ids": ids} for t, ids in zip(LEFT_TO_RIGHT, _llama_cpp(path), strict=True)],
    }


def _llama_cpp(path: Path) -> list[list[int]]:
    from llama_cpp import Llama

    model = Llama(str(path), vocab_only=True, verbose=False)
    return [model.tokenize(t.encode(), add_bos=True, special=True) for t in LEFT_TO_RIGHT]


if __name__ == "__main__":
    target = Path(__file__).with_name("golden_gemma3_270m.json")
    target.write_text(json.dumps(golden(Path(sys.argv[1]))) + "\n")
