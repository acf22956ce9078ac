"""Qwen3-TTS-Tokenizer-12Hz: 24 kHz speech as 16 codes of 2048 for each 80 ms."""
