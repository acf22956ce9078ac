"""Kokoro-82M: English speech from phonemes, StyleTTS 2 without diffusion (hexgrad/Kokoro-82M, Apache-2.0)."""
