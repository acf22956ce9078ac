"""Codecs: audio codes to samples and back."""
