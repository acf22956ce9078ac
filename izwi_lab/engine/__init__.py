"""Continuous batching in plain Python: who computes which positions in the next step, and in which blocks they lie.

`scheduler` says it, `blocks` (paged caches with prefix sharing) and `slots` (one state a sequence) keep the room,
`admission` stands at the door, `fair` shares a device between models, `metrics` and `timeline` tell what happened.
Nothing here imports numpy, torch or mlx: tensors begin where a plan is turned into a batch.
"""
