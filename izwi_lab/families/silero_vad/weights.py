"""Names of the export to canonical names; layouts are already torch's."""

from __future__ import annotations

from izwi_lab.artifacts.checkpoint import Checkpoint
from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.errors import CheckpointError

_NAMES = {
    "stft.forward_basis_buffer": "stft_conv.weight",
    **{f"encoder.{n}.reparam_conv.{k}": f"conv{n + 1}.{k}" for n in range(4) for k in ("weight", "bias")},
    **{f"decoder.rnn.{k}": f"lstm_cell.{k}" for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
    "decoder.decoder.2.weight": "final_conv.weight",
    "decoder.decoder.2.bias": "final_conv.bias",
}


def read(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights under canonical names. Raises CheckpointError listing what is missing."""
    missing = sorted(set(_NAMES) - set(checkpoint.names))
    if missing:
        raise CheckpointError(f"{checkpoint.folder}: the Silero export lacks {', '.join(missing)}.")
    out: dict[str, Tensor] = {}
    for source, name in _NAMES.items():
        tensor = checkpoint.read(source)
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{source} is quantised, expected float32.")
        out[name] = tensor
    return out
