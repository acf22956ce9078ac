"""Who ours is compared with: for each catalog variant, the best programs that run the same weights.

A peer is a module here and a row in PEERS; `izwi-lab bench` finds both. Modules import their package inside `load`,
so that a missing one is recorded as such. Versions last measured are in benchmarks/results.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Peer(NamedTuple):
    """target: "module:Class" under this package; options: its keywords beside `folder`, the checkpoint's."""

    name: str
    target: str
    options: Mapping[str, Any]


_SMOL = {"file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
_GEMMA = {"file": "gemma-3-270m-q4_k_m.gguf"}
_FASTER_WHISPER = "benchmarks.peers.faster_whisper:FasterWhisper"
_WHISPER = (
    Peer("faster-whisper int8", _FASTER_WHISPER, {"compute_type": "int8"}),
    Peer("faster-whisper int8 batched", _FASTER_WHISPER, {"compute_type": "int8", "batched": True}),
)

PEERS: Mapping[str, tuple[Peer, ...]] = {
    "SmolLM2-135M-Instruct": (
        Peer("llama.cpp", "benchmarks.peers.llama_cpp:LlamaCpp", _SMOL),
        Peer("transformers bf16", "benchmarks.peers.transformers_chat:TransformersChat", _SMOL),
    ),
    "Gemma-3-270m": (
        Peer("llama.cpp", "benchmarks.peers.llama_cpp:LlamaCpp", _GEMMA),
        Peer("transformers bf16", "benchmarks.peers.transformers_chat:TransformersChat", _GEMMA),
    ),
    "Whisper-base": _WHISPER,
    "Whisper-tiny.en": _WHISPER,
    "Kokoro-82M": (
        Peer("onnxruntime int8", "benchmarks.peers.onnx_kokoro:OnnxKokoro", {"precision": "int8"}),
        Peer("onnxruntime float", "benchmarks.peers.onnx_kokoro:OnnxKokoro", {"precision": "float"}),
    ),
}
