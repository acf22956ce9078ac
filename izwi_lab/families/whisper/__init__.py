"""Whisper: speech recognition and translation to English (Radford et al. 2022, arXiv:2212.04356)."""
