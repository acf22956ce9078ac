"""Transformers whose attention sees a window of the past, as codecs have them."""
