"""Makes golden_smollm2.json: greedy tokens of transformers on the starter GGUF. Usage: llama_golden.py FILE"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PROMPTS = (
    "What is the capital of France? Answer in one sentence.",
    "Write a short story about a lighthouse keeper.",
    "Explain why the sky is blue. Use 3 numbered points, naïve café 日本 🎉.",
)


def golden(path: Path) -> list[dict]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    out = []
    for prompt in PROMPTS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.inference_mode():
            said = model.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :]
        out.append({"prompt": prompt, "ids": ids[0].tolist(), "tokens": said.tolist()})
    return out


if __name__ == "__main__":
    target = Path(__file__).with_name("golden_smollm2.json")
    target.write_text(json.dumps(golden(Path(sys.argv[1]))) + "\n")
