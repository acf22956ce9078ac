"""The int8 Kokoro graph with its integer arithmetic undone: same weights, float32 products.

No float export of Kokoro is on a package registry, so the float peer is made from the int8 one. Dynamic quantisation
in ONNX is a chain around each product: the input is quantised, multiplied as integers, cast, and multiplied by both
scales. Each chain becomes one float MatMul, Conv or LSTM on the dequantised weight, with no scaling left over, so that
onnxruntime is timed on the graph that a float export would have given it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

LSTM_ATTRIBUTES = ("direction", "hidden_size")


class _Graph:
    """An ONNX graph with its edges looked up both ways."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.producer = {name: node for node in graph.node for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.added: dict[str, np.ndarray] = {}

    def next(self, node: onnx.NodeProto, *kinds: str) -> onnx.NodeProto:
        """The only consumer of a node's output, which must be of one of these kinds."""
        found = self.consumers.get(node.output[0], [])
        if len(found) != 1 or found[0].op_type not in kinds:
            seen = [n.op_type for n in found]
            raise ValueError(f"{node.name}: expected one {' or '.join(kinds)} after it, found {seen}")
        return found[0]

    def float_input(self, quantised: str) -> str:
        """The float tensor that DynamicQuantizeLinear made `quantised` from."""
        node = self.producer[quantised]
        if node.op_type != "DynamicQuantizeLinear":
            raise ValueError(f"{quantised}: expected DynamicQuantizeLinear before it, found {node.op_type}")
        return node.input[0]

    def constant(self, name: str, values: np.ndarray) -> str:
        """Add an initialiser once and return its name."""
        self.added[name] = np.ascontiguousarray(values, dtype=np.float32)
        return name


def to_float(source: Path, target: Path) -> None:
    """Rewrite the graph in `source` and save it to `target`. Raises ValueError where a chain has another shape."""
    model = onnx.load(str(source))
    graph = _Graph(model.graph)
    replaced: dict[str, onnx.NodeProto] = {}  # by the tensor whose producer it takes over
    for node in model.graph.node:
        if node.op_type in ("MatMulInteger", "ConvInteger"):
            new = _float_product(graph, node)
            replaced[new.output[0]] = new
        elif node.op_type == "DynamicQuantizeLSTM":
            replaced[node.output[0]] = _float_lstm(graph, node)
    nodes = [replaced.get(node.output[0], node) for node in model.graph.node]
    nodes = _reachable(nodes, [output.name for output in model.graph.output])
    used = {name for node in nodes for name in node.input}
    kept = [t for t in model.graph.initializer if t.name in used]
    kept += [numpy_helper.from_array(values, name) for name, values in graph.added.items()]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(kept)
    onnx.save(model, str(target))


def _float_product(graph: _Graph, node: onnx.NodeProto) -> onnx.NodeProto:
    """MatMulInteger or ConvInteger, its optional bias, cast and scaling, as one float node."""
    weight, zero_point = graph.constants[node.input[1]], graph.constants[node.input[3]]
    after = graph.next(node, "Cast", "Add")
    inputs = [graph.float_input(node.input[0])]
    bias = None
    if after.op_type == "Add":
        bias = _float_bias(graph, next(name for name in after.input if name != node.output[0]))
        after = graph.next(after, "Cast")
    scaling = graph.next(after, "Mul")
    scale = _weight_scale(graph, next(name for name in scaling.input if name != after.output[0]))
    values = (weight.astype(np.float32) - zero_point.astype(np.float32)) * scale
    inputs.append(graph.constant(node.name + "_float_weight", values))
    inputs += [bias] if bias else []
    new = helper.make_node(node.op_type.removesuffix("Integer"), inputs, list(scaling.output), name=node.name)
    new.attribute.extend(node.attribute)
    return new


def _weight_scale(graph: _Graph, product: str) -> np.ndarray:
    """The constant factor of (input scale * weight scale)."""
    constants = [graph.constants[name] for name in graph.producer[product].input if name in graph.constants]
    if len(constants) != 1:
        raise ValueError(f"{product}: expected one constant scale, found {len(constants)}")
    return constants[0]


def _float_bias(graph: _Graph, name: str) -> str:
    """The float bias behind Reshape(Cast(Floor(bias / scale)))."""
    for kind in ("Reshape", "Cast", "Floor", "Div"):
        node = graph.producer[name]
        if node.op_type != kind:
            raise ValueError(f"{name}: expected {kind} before it, found {node.op_type}")
        name = node.input[0]
    return name


def _float_lstm(graph: _Graph, node: onnx.NodeProto) -> onnx.NodeProto:
    """Weights [2, in, 4H] int8 with one scale and zero point per direction become [2, 4H, in] float."""
    names = []
    for weight, scale, zero_point in ((1, 8, 9), (2, 10, 11)):
        q, s, z = (graph.constants[node.input[i]].astype(np.float32) for i in (weight, scale, zero_point))
        values = (q - z[:, None, None]) * s[:, None, None]
        names.append(graph.constant(f"{node.name}_float_weight_{weight}", values.transpose(0, 2, 1)))
    inputs = [node.input[0], *names, node.input[3], node.input[4], node.input[5], node.input[6]]
    new = helper.make_node("LSTM", inputs, list(node.output), name=node.name)
    new.attribute.extend(a for a in node.attribute if a.name in LSTM_ATTRIBUTES)
    return new


def _reachable(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """The nodes that the outputs depend on, in their order."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]
