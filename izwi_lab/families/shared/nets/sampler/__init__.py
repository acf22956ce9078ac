"""Choosing a token where the logits are: one pair of nets for devices, one compiled kernel for host memory."""
