"""Qwen3-TTS: speech from text in ten languages, with preset, cloned or described voices (Qwen/Qwen3-TTS-12Hz)."""
