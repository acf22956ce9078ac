"""Residual vector quantisers, the first codebook apart from the rest (Mimi, Qwen3-TTS)."""
