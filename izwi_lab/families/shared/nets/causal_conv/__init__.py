"""Causal convolutions whose past is passed in and out: any chunking of the input gives the same output."""
