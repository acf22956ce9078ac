"""The int8 export's names and numbers, on a small graph with its kinds of nodes; and damaged files."""

import numpy as np
import pytest

from izwi_lab.artifacts.checkpoint import open_checkpoint
from izwi_lab.artifacts.kokoro_onnx_reader import module_path
from izwi_lab.errors import CheckpointError

onnx = pytest.importorskip("onnx")
RNG = np.random.default_rng(0)
HIDDEN = 4


@pytest.mark.parametrize(
    ("node", "path"),
    [
        ("/encoder/text_encoder/cnn.0/cnn.0.0/Conv_quant", "text_encoder.cnn.0.0"),
        ("/decoder/decoder/asr_res/asr_res.0/Conv_quant", "decoder.asr_res.0"),
        ("/decoder/decoder/generator/resblocks.3/convs1.2/Conv", "decoder.generator.resblocks.3.convs1.2"),
        ("/encoder/F0.1/conv1/Conv_quant", "predictor.F0.1.conv1"),
        ("/encoder/shared/LSTM_quant", "predictor.shared"),
        ("/encoder/N_proj/Conv", "predictor.N_proj"),
        ("/encoder/predictor/lstm/LSTM_quant", "predictor.lstm"),
        ("/encoder/bert/encoder/layer/attention/query_7/MatMul", "bert.encoder.layer.attention.query"),
        ("/encoder/bert_encoder/MatMul_quant", "bert_encoder"),
    ],
)
def test_node_names_are_module_paths(node, path):
    assert module_path(node) == path


def parts():
    """Initialisers, nodes, and the canonical tensors they stand for."""
    held, nodes, wanted = {}, [], {}
    node = onnx.helper.make_node
    q = RNG.integers(-128, 128, (3, 5), dtype=np.int8)
    scale, zero = RNG.random(5, np.float32), RNG.integers(-5, 5, 5, dtype=np.int8)
    held |= {"onnx::MatMul_1_quantized": q, "onnx::MatMul_1_scale": scale, "shared_zero": zero}
    for call in ("query", "query_1"):
        nodes.append(
            node(
                "MatMulInteger",
                ["x", "onnx::MatMul_1_quantized", "xz", "shared_zero"],
                [call],
                name=f"/encoder/bert/{call}/MatMul_quant",
            )
        )
    wanted["bert.query.weight"] = ((q.astype(np.float32) - zero) * scale).T

    c = RNG.integers(0, 256, (2, 3, 7), dtype=np.uint8)
    held |= {"c_quantized": c, "c_scale": np.float32(0.25), "c_zero": np.uint8(128)}
    nodes.append(
        node("ConvInteger", ["x", "c_quantized", "xz", "c_zero"], ["c"], name="/encoder/F0.0/conv1/Conv_quant")
    )
    wanted["predictor.F0.0.conv1.weight"] = (c.astype(np.float32) - 128) * np.float32(0.25)

    up = RNG.random((2, 3, 4), np.float32)
    held |= {"up": up, "window": up}
    nodes.append(node("ConvTranspose", ["x", "up"], ["u"], name="/decoder/decoder/generator/ups.0/ConvTranspose"))
    nodes.append(node("Conv", ["x", "window"], ["w"], name="/decoder/decoder/generator/stft/istft/Conv"))
    wanted["decoder.generator.ups.0.weight"] = up

    line = RNG.random((9, 1), np.float32)
    held["line"] = line
    nodes.append(node("MatMul", ["x", "line"], ["l"], name="/decoder/decoder/generator/m_source/l_linear/MatMul"))
    wanted["decoder.generator.m_source.l_linear.weight"] = line.T

    w, r = (RNG.integers(-128, 128, (2, n, 4 * HIDDEN), dtype=np.int8) for n in (3, HIDDEN))
    b = RNG.random((2, 8 * HIDDEN), np.float32)
    held |= {
        "W": w,
        "R": r,
        "B": b,
        "Ws": RNG.random(2, np.float32),
        "Wz": np.array([1, -2], np.int8),
        "Rs": RNG.random(2, np.float32),
        "Rz": np.array([0, 3], np.int8),
    }
    nodes.append(
        node(
            "DynamicQuantizeLSTM",
            ["x", "W", "R", "B", "", "h", "c0", "", "Ws", "Wz", "Rs", "Rz"],
            ["y"],
            name="/encoder/predictor/lstm/LSTM_quant",
            domain="com.microsoft",
        )
    )

    def order(a):  # i, o, f, c -> i, f, g, o
        i, o, f, g = np.split(a, 4)
        return np.concatenate([i, f, g, o])

    for d, end in enumerate(("", "_reverse")):
        wanted[f"predictor.lstm.weight_ih_l0{end}"] = order(
            ((w[d].astype(np.float32) - held["Wz"][d]) * held["Ws"][d]).T
        )
        wanted[f"predictor.lstm.weight_hh_l0{end}"] = order(
            ((r[d].astype(np.float32) - held["Rz"][d]) * held["Rs"][d]).T
        )
        wanted[f"predictor.lstm.bias_ih_l0{end}"] = order(b[d, : 4 * HIDDEN])
        wanted[f"predictor.lstm.bias_hh_l0{end}"] = order(b[d, 4 * HIDDEN :])

    word = "encoder.bert.embeddings.word_embeddings"
    position = "encoder.bert.embeddings.position_embeddings"
    for name in (word, position):
        e = RNG.integers(-128, 128, (6, 2), dtype=np.int8)
        held |= {f"{name}.weight_quantized": e, f"{name}.weight_scale": np.float32(0.5)}
        wanted[name.removeprefix("encoder.") + ".weight"] = (e.astype(np.float32) - 3) * np.float32(0.5)
    held[f"{word}.weight_zero_point"] = np.int8(3)  # the one that equal zero points were merged into
    held["encoder.F0_proj.bias"] = wanted["predictor.F0_proj.bias"] = RNG.random(1).astype(np.float32)
    return held, nodes, wanted


def write(folder, held, nodes, name="kokoro-v1.0.int8.onnx"):
    graph = onnx.helper.make_graph(
        nodes, "kokoro", [], [], [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in held.items()]
    )
    (folder / name).write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return folder / name


def test_every_kind_of_weight_is_read_exactly(tmp_path):
    held, nodes, wanted = parts()
    write(tmp_path, held, nodes)
    checkpoint = open_checkpoint(tmp_path, "kokoro_onnx")
    assert set(checkpoint.names) == set(wanted)
    for name, value in wanted.items():
        tensor = checkpoint.read(name)
        assert tensor.dtype == "float32" and checkpoint.shape(name) == value.shape
        assert np.array_equal(tensor.data, value), name
    with pytest.raises(CheckpointError, match="no tensor 'nothing'"):
        checkpoint.read("nothing")
    checkpoint.close()


def test_truncated_and_foreign_files_are_refused(tmp_path):
    held, nodes, _ = parts()
    path = write(tmp_path, held, nodes)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:-7], b"", b"plain text, no graph", b"\x00" * 64):
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path, "kokoro_onnx")


@pytest.mark.parametrize("gone", ["onnx::MatMul_1_scale", "c_scale"])
def test_a_missing_scale_is_refused(tmp_path, gone):
    held, nodes, _ = parts()
    del held[gone]
    write(tmp_path, held, nodes)
    with pytest.raises(CheckpointError, match="not the Kokoro export"):
        open_checkpoint(tmp_path, "kokoro_onnx")


def test_values_outside_the_file_are_not_followed(tmp_path):
    held, nodes, _ = parts()
    (tmp_path / "secret").write_bytes(b"\x01" * 64)
    path = write(tmp_path, held, nodes)
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name == "up":
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            entry = tensor.external_data.add()
            entry.key, entry.value = "location", "../../etc/passwd"
    path.write_bytes(model.SerializeToString())
    checkpoint = open_checkpoint(tmp_path, "kokoro_onnx")
    with pytest.raises(CheckpointError, match="another file"):
        checkpoint.read("decoder.generator.ups.0.weight")


def test_a_tensor_whose_bytes_do_not_fit_its_shape_is_refused(tmp_path):
    held, nodes, _ = parts()
    path = write(tmp_path, held, nodes)
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name == "up":
            tensor.dims[0] = 2**40
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_checkpoint(tmp_path, "kokoro_onnx").read("decoder.generator.ups.0.weight")


def test_a_folder_needs_exactly_one_export(tmp_path):
    with pytest.raises(CheckpointError, match=r"one kokoro\*\.onnx"):
        open_checkpoint(tmp_path, "kokoro_onnx")
