"""Silero VAD: which 32 ms frames hold speech (github.com/snakers4/silero-vad, MIT)."""
