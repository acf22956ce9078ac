"""Sessions on disk: arrays of the state as safetensors, everything else as JSON in its metadata. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from izwi_lab.errors import CheckpointError, InvalidInputError

if TYPE_CHECKING:
    from izwi_lab.families.shared.steps import Session

_KIND = "izwi-session-2"
_PLAIN = ("seed", "tokens", "prompt_ids", "position", "done", "finish_reason", "max_tokens", "reach")


def file_path(path: object) -> Path:
    """The path of a session's file. Raises InvalidInputError for what is no path, and for a folder."""
    if not isinstance(path, (str, Path)) or not str(path).strip():
        raise InvalidInputError(f"A session is kept in a file, got {path!r:.80}.", hint="Give the path of one.")
    if (file := Path(path)).is_dir():
        raise InvalidInputError(
            f"{file} is a folder; a session is kept in a file.", hint=f"For example {file / 'session.safetensors'}."
        )
    return file


def save_session(session: Session, path: Path) -> None:
    """Write `session` to `path`, whole or not at all."""
    from safetensors.numpy import save

    from izwi_lab.artifacts.atomic import written

    if not isinstance(session.rng.bit_generator, np.random.Philox):
        raise InvalidInputError(
            f"This session draws from {type(session.rng.bit_generator).__name__}; its file holds a Philox generator.",
            hint="For other random numbers: session.fork(seed=...).",
        )
    arrays: dict[str, np.ndarray] = {}
    notes = {
        "state": _plan(session.state, "state", arrays, session),
        "rng": _plan(session.rng.bit_generator.state, "rng", arrays, session),
        "codes": _plan(session.codes, "codes", arrays, session),
        "model": session.model,
        **{name: getattr(session, name) for name in _PLAIN},
    }
    with written(path) as file:
        file.write(save(arrays, metadata={"kind": _KIND, "session": json.dumps(notes)}))


def load_session(session: Session, path: Path, adopt: Callable[[Any], Any] | None = None) -> None:
    """Fill `session` from `path`, whole or not at all. adopt: see Session."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != _KIND:
                raise CheckpointError(f"{path} is not a saved session.", hint="Expected a file of Session.save().")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        notes = json.loads(metadata["session"])
        state, codes, rng = (_build(notes[name], arrays, session) for name in ("state", "codes", "rng"))
        generator = np.random.Generator(np.random.Philox(0))
        generator.bit_generator.state = rng
        plain = {name: notes[name] for name in _PLAIN}
        model = str(notes["model"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"Cannot read the session {path}: {error}.") from None
    if model != session.model:
        raise CheckpointError(f"{path} was saved by another model: {model or 'unnamed'}, not {session.model}.")
    if adopt is not None:
        state = adopt(state)
    else:
        held, found = _outline(session.state, "state"), _outline(state, "state")
        if other := [f"{n} is {found.get(n, 'absent')}, expected {s}" for n, s in held.items() if found.get(n) != s]:
            raise CheckpointError(f"{path} was saved by another model: {'; '.join(other[:4])}.")
    session.state = state
    session.codes = codes
    session.rng = generator
    for name, value in plain.items():
        setattr(session, name, value)
    session.last = session.tally = None


def _plan(value: Any, name: str, arrays: dict[str, np.ndarray], session: Session) -> Any:
    """The JSON form of a tree; arrays go to `arrays` and leave {"array": name, "dtype": ...}."""
    if isinstance(value, Mapping):
        return {"map": {k: _plan(v, f"{name}.{k}", arrays, session) for k, v in value.items()}}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_plan(v, f"{name}.{i}", arrays, session) for i, v in enumerate(value)]}
    if isinstance(value, np.ndarray):
        arrays[name] = np.ascontiguousarray(value)
        return {"array": name, "host": True}
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        arrays[name] = np.ascontiguousarray(session.backend.numpy(value))
        return {"array": name, "dtype": str(value.dtype).rpartition(".")[2]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise CheckpointError(f"This session cannot be saved: {name} is a {type(value).__name__}.")


def _build(plan: Any, arrays: Mapping[str, np.ndarray], session: Session) -> Any:
    if "map" in plan:
        return {k: _build(v, arrays, session) for k, v in plan["map"].items()}
    if "list" in plan:
        return [_build(v, arrays, session) for v in plan["list"]]
    if "tuple" in plan:
        return tuple(_build(v, arrays, session) for v in plan["tuple"])
    if "array" in plan:
        array = arrays[plan["array"]]
        return array if plan.get("host") else session.backend.array(array, dtype=plan["dtype"])
    return plan["value"]


def _outline(tree: Any, name: str) -> dict[str, str]:
    """The shapes of the arrays in a state, by name."""
    if isinstance(tree, Mapping):
        return {k: s for key, value in tree.items() for k, s in _outline(value, f"{name}.{key}").items()}
    if isinstance(tree, (list, tuple)):
        return {k: s for i, value in enumerate(tree) for k, s in _outline(value, f"{name}.{i}").items()}
    return {name: str(list(tree.shape))} if hasattr(tree, "shape") else {}
