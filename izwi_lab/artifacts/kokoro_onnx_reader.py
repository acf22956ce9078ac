"""Reader of the int8 ONNX export of Kokoro-82M (`kokoro-v1.0.int8.onnx`): initialisers back to the checkpoint's names.

The export keeps the names of biases, norms and embeddings but not those of convolution and matrix weights; the name of
the node that consumes a weight still is the module's path, so that is the key. Weight norm was folded by the exporter.
Tensors are given as float32, exactly the values that the export stands for: (q - zero_point) * scale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.errors import CheckpointError, MissingExtraError

_IOFC_TO_IFGO = (0, 2, 3, 1)  # ONNX packs LSTM gates i, o, f, c; torch i, f, g (= c), o
_SHARED_ZERO_POINT = "encoder.bert.embeddings.word_embeddings.weight_zero_point"
_SIDE_SUFFIXES = ("_scale", "_zero_point", "_reshape_shape")
_HINT = "Fetch kokoro-v1.0.int8.onnx of the release model-files-v1.0 again."

Array = np.ndarray


class KokoroOnnx:
    """The opened export: canonical names, dequantised one tensor at a time."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.folder = folder
        self.config: Mapping[str, Any] = MappingProxyType({})
        graph = _graph(path)
        self._values = {t.name: t for t in graph.initializer}
        self._readers: dict[str, Callable[[], Array]] = {}
        try:
            _Names(self._values, self._array, self._readers).collect(graph.node)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{path.name} is not the Kokoro export that is known: {error!r}.", hint=_HINT
            ) from error
        if not self._readers:
            raise CheckpointError(f"{path.name} holds no weights of Kokoro.", hint=_HINT)

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical tensor names."""
        return tuple(self._readers)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor (computed by reading it: the export stores other axes)."""
        return self.read(name).shape

    def read(self, name: str) -> Tensor:
        """The tensor as float32."""
        if name not in self._readers:
            raise CheckpointError(f"The export has no tensor {name!r}.", hint="Names are listed by `names`.")
        try:
            return Tensor(np.ascontiguousarray(self._readers[name](), dtype=np.float32), "float32")
        except (KeyError, IndexError, ValueError) as error:
            raise CheckpointError(f"Tensor {name!r} of the export cannot be read: {error}.", hint=_HINT) from error

    def close(self) -> None:
        """Drop the graph."""
        self._values, self._readers = {}, {}

    def _array(self, name: str) -> Array:
        import onnx

        tensor = self._values[name]
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError(f"initialiser {name!r} points to another file")
        array: Array = onnx.numpy_helper.to_array(tensor)
        return array


def open_folder(folder: Path) -> KokoroOnnx:
    """Open the one `.onnx` file in `folder`. Raises CheckpointError if it is missing, truncated or another graph."""
    found = sorted(Path(folder).glob("kokoro*.onnx"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise CheckpointError(f"Expected one kokoro*.onnx in {folder}, found {names}.", hint=_HINT)
    return KokoroOnnx(Path(folder), found[0])


def module_path(node: str) -> str:
    """The module a node came from: "/encoder/text_encoder/cnn.0/cnn.0.0/Conv_quant" -> "text_encoder.cnn.0.0"."""
    parts: list[str] = []
    for part in node.strip("/").split("/")[:-1]:  # the last element names the operation
        if parts and part.startswith(parts[-1] + "."):
            parts[-1] = part  # the exporter repeats the list's name before the item's
        else:
            parts.append(part)
    # ALBERT's one layer is called twelve times; later calls are numbered.
    path = re.sub(r"(query|key|value|dense|ffn|ffn_output)_\d+(?=$|\.)", r"\1", ".".join(parts))
    return canonical(path)


def canonical(path: str) -> str:
    """Exporter's scope to checkpoint's: the wrapper's prefix goes, and `predictor` comes back where tracing lost it."""
    if path.startswith("decoder.decoder."):
        return path.removeprefix("decoder.")
    if path.startswith("encoder."):
        path = path.removeprefix("encoder.")
        if re.match(r"(F0|N)\.\d|F0_proj|N_proj|shared", path):
            return "predictor." + path
    return path


class _Names:
    """Walks the nodes once and says, for every canonical name, how to compute the tensor."""

    def __init__(
        self, values: Mapping[str, Any], array: Callable[[str], Array], readers: dict[str, Callable[[], Array]]
    ) -> None:
        self.values, self.array, self.readers = values, array, readers
        self.used: set[str] = set()

    def collect(self, nodes: Any) -> None:
        """Fill `readers` from the nodes, then from the initialisers that kept their names."""
        rules = {
            "MatMulInteger": self._matmul_integer,
            "ConvInteger": self._conv_integer,
            "Conv": self._conv,
            "ConvTranspose": self._conv,
            "MatMul": self._matmul,
            "DynamicQuantizeLSTM": self._lstm,
        }
        for node in nodes:
            if node.op_type in rules:
                rules[node.op_type](node)
        for name in self.values:
            self._named(name)

    def _add(self, key: str, reader: Callable[[], Array]) -> None:
        self.readers.setdefault(key, reader)  # the first call of a shared layer wins

    def _scale(self, name: str) -> str:
        scale = name.removesuffix("_quantized") + "_scale"
        if scale not in self.values:
            raise KeyError(scale)
        self.used.update({name, scale})
        return scale

    def _matmul_integer(self, node: Any) -> None:
        weight, zero = node.input[1], node.input[3]
        if weight in self.values:  # int8 [in, out], scale and zero point per output
            scale = self._scale(weight)
            self.used.add(zero)
            self._add(module_path(node.name) + ".weight", lambda: self._affine(weight, scale, zero).T)

    def _conv_integer(self, node: Any) -> None:
        weight, zero = node.input[1], node.input[3]
        scale = self._scale(weight)  # uint8 [out, in / groups, k], one scale and zero point
        self.used.add(zero)
        self._add(module_path(node.name) + ".weight", lambda: self._affine(weight, scale, zero))

    def _conv(self, node: Any) -> None:
        weight = node.input[1]
        self.used.add(weight)
        if "/istft/" in node.name:  # constants of the transform, not weights
            self.used.add("decoder.decoder.generator.stft.istft.stft.window_sum")
        else:
            self._add(module_path(node.name) + ".weight", lambda: self.array(weight))

    def _matmul(self, node: Any) -> None:
        weight = node.input[1]
        if weight in self.values:
            self.used.add(weight)
            self._add(module_path(node.name) + ".weight", lambda: self.array(weight).T)

    def _lstm(self, node: Any) -> None:
        # X, W int8 [2, in, 4H], R int8 [2, H, 4H], B [2, 8H], lengths, h0, c0, P, W scale, W zero, R scale, R zero
        w, r, b = node.input[1:4]
        sides = dict(zip((w, r), (node.input[8:10], node.input[10:12]), strict=True))
        self.used.update({w, r, b, *node.input[8:12]})
        base = module_path(node.name)
        for index, suffix in enumerate(("", "_reverse")):
            for part, source in (("ih", w), ("hh", r)):
                scale, zero = sides[source]
                self._add(
                    f"{base}.weight_{part}_l0{suffix}",
                    lambda i=index, s=source, a=scale, z=zero: _gates(  # type: ignore[misc]
                        ((self.array(s)[i].astype(np.float32) - np.float32(self.array(z)[i])) * self.array(a)[i]).T
                    ),
                )
            for half, part in enumerate(("ih", "hh")):
                self._add(
                    f"{base}.bias_{part}_l0{suffix}",
                    lambda i=index, h=half: _gates(np.split(self.array(b)[i], 2)[h]),  # type: ignore[misc]
                )

    def _named(self, name: str) -> None:
        if not re.match(r"(encoder|decoder)\.", name) or name in self.used or name.endswith(_SIDE_SUFFIXES):
            return
        if not name.endswith(".weight_quantized"):
            self._add(canonical(name), lambda: self.array(name))
            return
        key = canonical(name.removesuffix("_quantized"))
        if key not in self.readers:  # an embedding: one scale; equal zero points were merged into one by the exporter
            own = name.removesuffix("_quantized") + "_zero_point"
            zero, scale = own if own in self.values else _SHARED_ZERO_POINT, self._scale(name)
            self._add(key, lambda: self._affine(name, scale, zero))

    def _affine(self, name: str, scale: str, zero: str) -> Array:
        out: Array = (self.array(name).astype(np.float32) - self.array(zero).astype(np.float32)) * self.array(scale)
        return out


def _gates(array: Array) -> Array:
    """Reorder the four gate blocks along the first axis."""
    blocks = np.split(array, 4)
    return np.concatenate([blocks[i] for i in _IOFC_TO_IFGO])


def _graph(path: Path) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError("onnx", "starter") from error
    try:
        # Files that the graph points to are not opened: a hostile path must not be followed.
        return onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf raises its own DecodeError
        raise CheckpointError(f"{path.name} is not a whole ONNX file: {error}.", hint=_HINT) from error
