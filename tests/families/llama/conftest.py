"""Fixtures of the llama tests; what they are made of is in tiny_llama.py."""

from tiny_llama import gguf_folder, hf_folder, model

__all__ = ["gguf_folder", "hf_folder", "model"]
