"""The pickle inside a torch checkpoint, read as data: an opcode stream that may only build dicts, lists and tensors.

Nothing is imported and nothing is called: `pickletools.genops` lists the opcodes, a small stack machine follows those
that torch's own writer uses, and a global is a name to compare with a short list. Everything else is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from izwi_lab.errors import CheckpointError

MAX_PICKLE_BYTES = 64 * 2**20
_HINT = "Only tensors in dicts and lists are read; a checkpoint that needs more is not opened."

STORAGES = {
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.DoubleStorage": "float64",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_ALLOWED = {*STORAGES, _DICT, _TENSOR, _PARAMETER}


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A block of values in the archive: its file's key, its dtype, and how many values it claims."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A view of a storage: values at offset + sum(index * stride)."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


_MARK = object()


def read_pickle(data: bytes, where: str) -> Any:
    """The value that `data` describes: dicts, lists, tuples, numbers, strings and TensorRefs.

    Raises CheckpointError for any opcode or global outside torch's tensor files, and for a malformed stream.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise CheckpointError(f"{where}: its index is {len(data)} bytes, over {MAX_PICKLE_BYTES}.", hint=_HINT)
    try:
        return _Machine(where).run(data)
    except CheckpointError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{where}: its index is malformed: {error!r}.", hint="Fetch the file again.") from error


def tensors(value: Any, prefix: str = "") -> Iterator[tuple[str, TensorRef]]:
    """All tensors of nested dicts and lists, under dotted names. A bare tensor has the name it is given."""
    pending = [(prefix, value)]
    while pending:
        name, item = pending.pop()
        if isinstance(item, TensorRef):
            yield name, item
        elif isinstance(item, dict):
            pending += [(f"{name}.{k}" if name else str(k), v) for k, v in reversed(item.items())]
        elif isinstance(item, (list, tuple)):
            pending += [(f"{name}.{i}" if name else str(i), v) for i, v in reversed(list(enumerate(item)))]


class _Machine:
    """The pickle stack machine, less everything that could run code."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.steps: dict[str, Callable[[Any], None]] = {
            "MARK": lambda _: self.stack.append(_MARK),
            "NONE": lambda _: self.stack.append(None),
            "NEWTRUE": lambda _: self.stack.append(True),
            "NEWFALSE": lambda _: self.stack.append(False),
            "EMPTY_DICT": lambda _: self.stack.append({}),
            "EMPTY_LIST": lambda _: self.stack.append([]),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            "TUPLE": lambda _: self.stack.append(tuple(self.pop_mark())),
            "TUPLE1": lambda _: self.tuple_of(1),
            "TUPLE2": lambda _: self.tuple_of(2),
            "TUPLE3": lambda _: self.tuple_of(3),
            "SETITEM": lambda _: self.set_items([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda _: self.set_items(self.pop_mark()),
            "APPEND": lambda _: self.extend([self.stack.pop()]),
            "APPENDS": lambda _: self.extend(self.pop_mark()),
            "MEMOIZE": lambda _: self.memo.__setitem__(len(self.memo), self.stack[-1]),
            "GLOBAL": lambda name: self.use_global(name.replace(" ", ".", 1)),
            "STACK_GLOBAL": lambda _: self.use_global(f"{self.stack.pop(-2)}.{self.stack.pop()}"),
            "BINPERSID": lambda _: self.storage(self.stack.pop()),
            "REDUCE": lambda _: self.reduce(self.stack.pop(-2), self.stack.pop()),
            "BUILD": lambda _: self.build(self.stack.pop()),
        }
        for code in ("BINPUT", "LONG_BINPUT"):
            self.steps[code] = lambda slot: self.memo.__setitem__(slot, self.stack[-1])
        for code in ("BINGET", "LONG_BINGET"):
            self.steps[code] = lambda slot: self.stack.append(self.memo[slot])
        for code in (
            *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
            *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING"),
        ):
            self.steps[code] = self.stack.append
        for code in ("PROTO", "FRAME"):
            self.steps[code] = lambda _: None

    def run(self, data: bytes) -> Any:
        """Follow the stream to its STOP."""
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name == "STOP":
                (value,) = self.stack
                return value
            step = self.steps.get(opcode.name)
            if step is None:
                raise CheckpointError(
                    f"{self.where}: its index uses {opcode.name} at byte {position}, which no tensor file needs.",
                    hint=_HINT,
                )
            step(argument)
        raise ValueError("the stream has no STOP")

    def pop_mark(self) -> list[Any]:
        """The items above the last mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("a mark is missing")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def tuple_of(self, count: int) -> None:
        """Replace the last items by a tuple of them."""
        items = tuple(self.stack[-count:])
        if len(items) != count or _MARK in items:
            raise ValueError("a tuple is short")
        del self.stack[-count:]
        self.stack.append(items)

    def set_items(self, items: list[Any]) -> None:
        """Put key, value pairs into the dict below."""
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("items for what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, int)):
                raise ValueError(f"a key of type {type(key).__name__}")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        """Append items to the list below."""
        if not isinstance(self.stack[-1], list):
            raise ValueError("items for what is no list")
        self.stack[-1].extend(items)

    def use_global(self, name: str) -> None:
        """Push a global's name, if it is one of the few."""
        if name not in _ALLOWED:
            raise CheckpointError(f"{self.where}: its index names {name!r}, which is not read.", hint=_HINT)
        self.stack.append(_Global(name))

    def storage(self, identity: Any) -> None:
        """A persistent id: ("storage", type, key, device, count)."""
        kind, storage, key, _device, count = identity
        if kind != "storage" or not isinstance(storage, _Global) or storage.name not in STORAGES:
            raise ValueError(f"a persistent id that is no storage: {kind!r}")
        if not isinstance(key, str) or not isinstance(count, int) or count < 0:
            raise ValueError("a storage with a strange key or count")
        self.stack.append(StorageRef(key, STORAGES[storage.name], count))

    def reduce(self, function: Any, arguments: Any) -> None:
        """What torch's writer calls: an empty ordered dict, a tensor, or a parameter around one."""
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ValueError("a call of what is no function")
        if function.name == _DICT and arguments == ():
            self.stack.append({})
        elif function.name == _TENSOR:
            self.stack.append(_tensor(*arguments[:4]))
        elif function.name == _PARAMETER and isinstance(arguments[0], TensorRef):
            self.stack.append(arguments[0])
        else:
            raise ValueError(f"a call of {function.name} with strange arguments")

    def build(self, state: Any) -> None:
        """Attributes of a state dict (`_metadata`): dropped."""
        if not isinstance(self.stack[-1], dict) or not isinstance(state, (dict, tuple)):
            raise ValueError("attributes for what is no state dict")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorRef:
    sizes = (*shape, *strides, offset)
    if not isinstance(storage, StorageRef) or len(shape) != len(strides):
        raise ValueError("a tensor without a storage")
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in sizes):
        raise ValueError("a tensor with a strange size, stride or offset")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.count:
        raise ValueError(f"a tensor {list(shape)} that reaches past its {storage.count} values")
    return TensorRef(storage, offset, tuple(shape), tuple(strides))
