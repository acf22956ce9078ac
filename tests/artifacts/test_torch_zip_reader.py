"""torch's zip format is read as data: values equal torch's own reader, and hostile files are refused unexecuted."""

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch

from izwi_lab.artifacts.checkpoint import open_checkpoint
from izwi_lab.artifacts.torch_pickle import read_pickle
from izwi_lab.artifacts.torch_zip_reader import TorchZip, read_tensor
from izwi_lab.errors import CheckpointError


def saved(tmp_path, value, name="model.pth"):
    path = tmp_path / name
    torch.save(value, path)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool"])
def test_every_dtype_is_read_as_torch_wrote_it(tmp_path, dtype):
    value = (torch.randn(3, 5) * 10).to(getattr(torch, dtype))
    tensor = TorchZip(saved(tmp_path, {"x": value})).read("x")
    assert tensor.dtype == dtype and tensor.shape == (3, 5)
    assert np.array_equal(tensor.float32(), value.float().numpy())


def test_nested_dicts_views_and_parameters(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    value = OrderedDict(
        net=OrderedDict(transposed=base.T, column=base[:, 2], row=base[1:3], whole=torch.nn.Parameter(base)),
        list=[base[0], (base[3],)],
        empty=torch.empty(0, 3),
        scalar=torch.tensor(3.5),
        step=7,
        name="x",
    )
    archive = TorchZip(saved(tmp_path, value))
    flat = {
        "net.transposed": base.T, "net.column": base[:, 2], "net.row": base[1:3], "net.whole": base,
        "list.0": base[0], "list.1.0": base[3], "empty": torch.empty(0, 3), "scalar": torch.tensor(3.5),
    }  # fmt: skip
    assert set(archive.names) == set(flat)
    for name, expected in flat.items():
        assert archive.shape(name) == tuple(expected.shape)
        assert np.array_equal(archive.read(name).data, expected.numpy())
    archive.close()


def test_a_state_dict_with_its_metadata(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    archive = TorchZip(saved(tmp_path, module.state_dict()))
    assert archive.names == tuple(module.state_dict())


def test_a_folder_opens_with_its_config(tmp_path):
    saved(tmp_path, {"a": {"module.w": torch.ones(2)}}, "kokoro-v1_0.pth")
    (tmp_path / "config.json").write_text(json.dumps({"n_token": 3}))
    checkpoint = open_checkpoint(tmp_path, "kokoro_torch")
    assert checkpoint.config["n_token"] == 3 and checkpoint.names == ("a.module.w",)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path, "kokoro_torch")
    saved(tmp_path, {}, "second.pth")
    with pytest.raises(CheckpointError, match=r"one \.pth"):
        open_checkpoint(tmp_path, "kokoro_torch")


def test_a_voice_is_one_tensor_of_its_shape(tmp_path):
    voice = torch.randn(4, 1, 6)
    assert np.array_equal(read_tensor(saved(tmp_path, voice, "v.pt"), (4, 1, 6)), voice.numpy())
    with pytest.raises(CheckpointError, match=r"one tensor \[4, 1, 6\]"):
        read_tensor(saved(tmp_path, voice[:2].clone(), "short.pt"), (4, 1, 6))
    with pytest.raises(CheckpointError, match="it holds a"):
        read_tensor(saved(tmp_path, {"a": voice}, "dict.pt"), (4, 1, 6))


class Evil:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(6))
def test_no_code_in_a_pickle_runs(tmp_path, protocol):
    target = tmp_path / "owned"
    for call, arguments in ((os.system, (f"touch {target}",)), (eval, (f"open({str(target)!r}, 'w')",))):
        data = pickle.dumps({"x": Evil(call, *arguments)}, protocol=protocol)
        with pytest.raises(CheckpointError):
            read_pickle(data, "evil.pth")
    assert not target.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cos\nsystem\n.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor\n.",  # a neighbour of what is allowed
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
        b"\x80\x02(ccollections\nOrderedDict\no.",
        b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02K\x03K\x04tR.",
        b"\x80\x02K\x01K\x02.",
        b"\x80\x02}K\x01.",
        b"\x80\x02h\x05.",
        b"\x80\x02t.",
        b"\x80\x02",
        b"",
        b"\xff\xff\xff",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x82\x01.",
        b"\x80\x02(lp0\n.",
        b"\x80\x02NQ.",
    ],
)
def test_malformed_and_hostile_streams_are_refused(data):
    with pytest.raises(CheckpointError):
        read_pickle(data, "hostile.pth")


def rewritten(path, change):
    """The archive with each member passed through change(name, bytes) -> bytes or None."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            if (data := change(name, source.read(name))) is not None:
                target.writestr(name, data)
    path.write_bytes(out.getvalue())
    return path


def test_truncated_and_damaged_archives_are_refused(tmp_path):
    whole = saved(tmp_path, {"x": torch.randn(100)}).read_bytes()
    path = tmp_path / "model.pth"
    for data in (whole[:50], whole[: len(whole) // 2], whole[:-30], b"", b"not a zip"):
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            TorchZip(path)
    path.write_bytes(whole)
    for change in (
        lambda name, data: None if name.endswith("data/0") else data,
        lambda name, data: data[:-4] if name.endswith("data/0") else data,
    ):
        path.write_bytes(whole)
        archive = TorchZip(rewritten(path, change))
        with pytest.raises(CheckpointError, match="storage '0'"):
            archive.read("x")
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="big-endian"):
        TorchZip(rewritten(path, lambda name, data: b"big" if name.endswith("byteorder") else data))
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match=r"data\.pkl"):
        TorchZip(rewritten(path, lambda name, data: None if name.endswith("data.pkl") else data))


def test_a_tensor_may_not_reach_past_its_storage(tmp_path):
    path = saved(tmp_path, {"x": torch.arange(10.0)})

    def longer(name, data):
        return data.replace(b"K\n\x85", b"K\x0b\x85") if name.endswith("data.pkl") else data

    with pytest.raises(CheckpointError, match="reaches past"):
        TorchZip(rewritten(path, longer))


def test_an_old_style_file_is_refused(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"x": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="torch archive"):
        TorchZip(path)
