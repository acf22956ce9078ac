"""The official checkpoint of Qwen3-TTS-Tokenizer-12Hz under our net's names; what never changes is computed here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from izwi_lab.artifacts.checkpoint import Checkpoint
from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.codecs.qwen3_tts_12hz.config import CodecConfig
from izwi_lab.errors import CheckpointError
from izwi_lab.families.shared.weights import Renamed, Rule, Weight

_LEAST_USAGE = 1e-5  # of a centroid; qwen-tts 0.1.1 EuclideanCodebook and transformers' Mimi
_LEAST_BETA = 1e-9  # qwen-tts 0.1.1 SnakeBeta.no_div_by_zero
# Kept in float32 whatever the compute dtype: the whole encoder (a rounded vector has other codes), the decoder up to
# its transformer (1 % of the work; where attention sums in another order, rounded activations would make chunks
# differ), norms, and what is added or multiplied channel by channel.
FLOAT32 = (
    "encoder.*",
    "decoder.quantizer.*",
    "decoder.pre_transformer.*",
    "*norm*",
    "*.bias",
    "*.alpha",
    "*.inverse_beta",
    "*.scale",
    "*.gamma",
)
_DECODER_BOOK = r"decoder\.quantizer\.rvq_(first|rest)\.vq\.layers\.(\d+)\._codebook\.(embedding_sum|cluster_usage)"
_ENCODER_BOOK = (
    r"encoder\.quantizer\.(semantic|acoustic)_residual_vector_quantizer\.layers\.(\d+)\.codebook\."
    r"(embed_sum|cluster_usage|initialized)"
)


class CodecWeights(Mapping[str, Weight]):
    """The weights by our names: the checkpoint's renamed, and the centroids of all codebooks of a quantiser stacked."""

    def __init__(self, checkpoint: Checkpoint, config: CodecConfig) -> None:
        self._checkpoint = checkpoint
        self._plain = Renamed(checkpoint, rules(config))
        self._books = {
            "decoder.quantizer.first.codebooks": self._found(_DECODER_BOOK, "first", 1),
            "decoder.quantizer.rest.codebooks": self._found(_DECODER_BOOK, "rest", config.codebooks - 1),
            "encoder.quantizer.first.codebooks": self._found(_ENCODER_BOOK, "semantic", 1),
            "encoder.quantizer.rest.codebooks": self._found(_ENCODER_BOOK, "acoustic", config.codebooks - 1),
        }

    def _found(self, pattern: str, part: str, count: int) -> list[tuple[str, str]]:
        """Names of (sums, usage) of the first `count` codebooks. Raises CheckpointError if some are missing."""
        found: dict[tuple[int, bool], str] = {}
        for name in self._checkpoint.names:
            match = re.fullmatch(pattern, name)
            if match and match[1] == part and match[3] != "initialized":
                found[int(match[2]), match[3] == "cluster_usage"] = name
        missing = [i for i in range(count) if (i, False) not in found or (i, True) not in found]
        if missing:
            raise CheckpointError(
                f"The checkpoint lacks codebooks {missing} of the {part} quantiser, matching {pattern!r}.",
                hint="Fetch the model again.",
            )
        return [(found[i, False], found[i, True]) for i in range(count)]

    def _centroids(self, names: list[tuple[str, str]]) -> Tensor:
        tables: list[np.ndarray] = []
        for sums_name, usage_name in names:
            sums, usage = self._read(sums_name), self._read(usage_name)
            if sums.ndim != 2 or usage.shape != sums.shape[:1] or (tables and sums.shape != tables[0].shape):
                raise CheckpointError(
                    f"{sums_name} is {list(sums.shape)} and {usage_name} {list(usage.shape)}.",
                    hint="Expected [size, dim] and [size], the same for every codebook. Fetch the model again.",
                )
            tables.append(sums / np.maximum(usage, np.float32(_LEAST_USAGE))[:, None])
        return Tensor.of(np.stack(tables))

    def _read(self, name: str) -> np.ndarray:
        weight = self._checkpoint.read(name)
        return weight.float32()

    def __getitem__(self, name: str) -> Weight:
        return self._centroids(self._books[name]) if name in self._books else self._plain[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._plain
        yield from self._books

    def __len__(self) -> int:
        return len(self._plain) + len(self._books)


def rules(config: CodecConfig) -> list[Rule]:
    """The checkpoint's names to ours. Codebooks are dropped here: `CodecWeights` makes them."""
    out = [
        Rule(_DECODER_BOOK, None),
        Rule(_ENCODER_BOOK, None),
        Rule(r"decoder\.quantizer\.rvq_(?:first|rest)\.input_proj\.weight", None),  # of training
        Rule(r"encoder\.quantizer\.\w+\.output_proj\.weight", None),
        Rule(
            r"decoder\.quantizer\.rvq_(first|rest)\.output_proj\.weight",
            r"decoder.quantizer.\1.output_proj.weight",
            _matrix,
        ),
        Rule(
            r"encoder\.quantizer\.semantic_\w+\.input_proj\.weight",
            "encoder.quantizer.first.input_proj.weight",
            _matrix,
        ),
        Rule(
            r"encoder\.quantizer\.acoustic_\w+\.input_proj\.weight", "encoder.quantizer.rest.input_proj.weight", _matrix
        ),
        Rule(r"(.*)\.alpha", r"\1.alpha", _exponential),
        Rule(r"(.*)\.beta", r"\1.inverse_beta", _inverse),
        Rule(r"encoder\.encoder_transformer\.(.*)", r"encoder.seanet.transformer.\1"),
        Rule(r"encoder\.downsample\.conv\.weight", "encoder.seanet.downsample.weight"),
        *_seanet(len(config.encoder.seanet.ratios)),
    ]
    for i, ratio in enumerate(config.decoder.ratios):
        out += _up(rf"decoder\.upsample\.{i}\.0", f"decoder.upsample.{i}.0", ratio)
    for i, rate in enumerate(config.decoder.rates, 1):
        out += _up(rf"decoder\.decoder\.{i}\.block\.1", f"decoder.decoder.{i}.block.1", rate)
    return [*out, Rule(r"(.*)\.conv\.(weight|bias)", r"\1.\2")]


def _seanet(stages: int) -> list[Rule]:
    """SEANet is one numbered list: a convolution, then for each stage a block, an ELU and a convolution, and so on."""
    pairs = [("0", "first"), (str(3 * stages + 2), "last")]
    for i in range(stages):
        pairs += [
            (rf"{3 * i + 1}\.block\.1", f"residuals.{i}.conv1"),
            (rf"{3 * i + 1}\.block\.3", f"residuals.{i}.conv2"),
        ]
        pairs += [(str(3 * i + 3), f"downs.{i}")]
    return [Rule(rf"encoder\.encoder\.layers\.{a}\.conv\.(weight|bias)", rf"encoder.seanet.{b}.\1") for a, b in pairs]


def _up(pattern: str, name: str, rate: int) -> list[Rule]:
    return [
        Rule(rf"{pattern}\.conv\.weight", f"{name}.weight", _dense(lambda w: phases(w, rate))),
        Rule(rf"{pattern}\.conv\.bias", f"{name}.bias", _dense(lambda b: np.tile(b, rate))),
    ]


def phases(weight: np.ndarray, rate: int) -> np.ndarray:
    """A transposed convolution [ins, outs, kernel] as a causal one with `rate` times the outputs.

    Output t * rate + r sees input t - j through tap r + j * rate, so the result is [rate * outs, ins, kernel / rate]
    with the oldest input first.
    """
    if weight.ndim != 3 or weight.shape[2] % rate:
        raise CheckpointError(
            f"A transposed convolution is {list(weight.shape)}.", hint=f"Expected a kernel of whole times {rate}."
        )
    ins, outs, kernel = weight.shape
    taps = weight.reshape(ins, outs, kernel // rate, rate)[:, :, ::-1]
    return np.ascontiguousarray(taps.transpose(3, 1, 0, 2)).reshape(rate * outs, ins, kernel // rate)


def _dense(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Weight], Weight]:
    """A change of order, made on the stored values: bfloat16 stays as it is."""

    def changed(weight: Weight) -> Weight:
        return Tensor(change(weight.data), weight.dtype) if isinstance(weight, Tensor) else _unexpected(weight)

    return changed


def _unexpected(weight: Weight) -> Weight:
    raise CheckpointError(
        f"A quantised matrix {list(weight.shape)} where a convolution was expected.", hint="Use the official codec."
    )


def _matrix(weight: Weight) -> Weight:
    """A convolution with one tap as a matrix."""
    return _dense(lambda w: w.reshape(w.shape[:2]))(weight)


def _exponential(weight: Weight) -> Weight:
    return Tensor.of(np.exp(weight.float32()))


def _inverse(weight: Weight) -> Weight:
    return Tensor.of((1.0 / (np.exp(weight.float32()) + np.float32(_LEAST_BETA))).astype(np.float32))
