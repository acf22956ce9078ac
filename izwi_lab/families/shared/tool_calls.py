r"""How checkpoints write the function calls they want: Hermes (Qwen 2.5 and 3) and LFM2. Read, written, and enforced.

Hermes: `<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>`, one pair of tags a call.
LFM2: `<|tool_call_start|>[f(a=1), g(b="x")]<|tool_call_end|>`, calls in Python's syntax, which is parsed, never run.
"""

from __future__ import annotations

import ast
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.sections import Tags
from izwi_lab.results import ToolCall

MAX_BODY = 200_000  # characters of one call: parsing time grows with them
MAX_CALLS = 8  # that a grammar lets a model make in one answer

Function = Mapping[str, Any]


class CallForm(Protocol):
    """One way to write calls."""

    @property
    def tags(self) -> Tags:
        """What opens and closes them."""

    def parse(self, body: str) -> tuple[ToolCall, ...]:
        """The calls between the tags; none where the text is malformed."""

    def write(self, calls: Sequence[tuple[str, Any]]) -> str:
        """(name, arguments) pairs as the model would have written them, tags included."""

    def grammar(self, functions: Sequence[Function], *, most: int) -> str:
        """A llguidance grammar of 1 to `most` calls of these functions, with arguments as their schemas say."""


def _call(name: object, arguments: object) -> ToolCall:
    if not isinstance(name, str) or not name or not isinstance(arguments, Mapping):
        raise ValueError("a call needs a name and arguments")
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    text.encode()  # half a character cannot be sent on
    return ToolCall(f"call_{uuid.uuid4().hex[:24]}", name, text)


def _json_call(value: Any) -> ToolCall:
    arguments = value.get("arguments", value.get("parameters", {}))
    return _call(value.get("name"), json.loads(arguments) if isinstance(arguments, str) else arguments)


_MALFORMED = (ValueError, TypeError, AttributeError, SyntaxError, RecursionError, MemoryError)


@dataclass(frozen=True, slots=True)
class Hermes:
    """JSON between tags."""

    tags: Tags

    def parse(self, body: str) -> tuple[ToolCall, ...]:
        """See CallForm."""
        try:
            return (_json_call(json.loads(body)),) if len(body) <= MAX_BODY else ()
        except _MALFORMED:
            return ()

    def write(self, calls: Sequence[tuple[str, Any]]) -> str:
        """See CallForm."""
        bodies = (json.dumps({"name": name, "arguments": given}, ensure_ascii=False) for name, given in calls)
        return "\n".join(f"{self.tags.open}\n{body}\n{self.tags.close}" for body in bodies)

    def grammar(self, functions: Sequence[Function], *, most: int) -> str:
        """See CallForm."""
        bodies = [
            f'f{n}: "{{\\"name\\": \\"{f["name"]}\\", \\"arguments\\": " %json {_schema_text(parameters_of(f))} "}}"'
            for n, f in enumerate(functions)
        ]
        either = " | ".join(f"f{n}" for n in range(len(functions)))
        more = f' ("\\n" call){{0,{most - 1}}}' if most > 1 else ""
        opening, closing = (_tag_rule(t, i) for t, i in _pair(self.tags))
        call = f'call: {opening} "\\n" body "\\n" {closing}'
        return "\n".join([f"start: call{more}", call, f"body: {either}", *bodies])


@dataclass(frozen=True, slots=True)
class Lfm2:
    """Calls in Python's syntax between tags."""

    tags: Tags

    def parse(self, body: str) -> tuple[ToolCall, ...]:
        """See CallForm."""
        try:
            return self._parse(body.strip()) if len(body) <= MAX_BODY else ()
        except _MALFORMED:
            return ()

    def _parse(self, body: str) -> tuple[ToolCall, ...]:
        if body.startswith(("{", "[{")):  # the model may be asked for JSON
            values = json.loads(body)
            return tuple(_json_call(v) for v in (values if isinstance(values, list) else [values]))
        tree = ast.parse(body, mode="eval").body
        return tuple(_python_call(node) for node in (tree.elts if isinstance(tree, ast.List) else [tree]))

    def write(self, calls: Sequence[tuple[str, Any]]) -> str:
        """See CallForm."""
        texts = (f"{name}({', '.join(f'{k}={_literal(v)}' for k, v in given.items())})" for name, given in calls)
        return f"{self.tags.open}[{', '.join(texts)}]{self.tags.close}"

    def grammar(self, functions: Sequence[Function], *, most: int) -> str:
        """See CallForm."""
        rules = [rule for n, f in enumerate(functions) for rule in _python_rules(f"f{n}", f)]
        more = f' (", " call){{0,{most - 1}}}' if most > 1 else ""
        opening, closing = (_tag_rule(t, i) for t, i in _pair(self.tags))
        either = " | ".join(f"f{n}" for n in range(len(functions)))
        return "\n".join([f'start: {opening} "[" call{more} "]" {closing}', f"call: {either}", *rules])


def _pair(tags: Tags) -> tuple[tuple[str, int | None], tuple[str, int | None]]:
    return (tags.open, tags.open_id), (tags.close, tags.close_id)


def _tag_rule(text: str, token: int | None) -> str:
    return json.dumps(text) if token is None else f"<[{token}]>"


def parameters_of(function: Function) -> dict[str, Any]:
    """The schema of a function's arguments: always one of an object.

    Raises:
        InvalidInputError: its "parameters" are no such schema.
    """
    given = function.get("parameters") or {"properties": {}, "additionalProperties": False}
    if not isinstance(given, Mapping) or given.get("type", "object") != "object":
        raise InvalidInputError(
            f"tools: the parameters of {function.get('name')!r} must be a JSON schema of an object, got {given!r:.80}."
        )
    return {"type": "object", **given}


def _schema_text(schema: Mapping[str, Any], **options: Any) -> str:
    spacing = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", **options}
    return json.dumps({**schema, "x-guidance": spacing})


# LFM2's syntax


def _python_call(node: ast.expr) -> ToolCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("only calls with named arguments are calls")
    name, arguments = ast.unparse(node.func), {str(k.arg): _value(k.value) for k in node.keywords}
    plain = all(part.isidentifier() for part in name.split("."))
    if not plain or len(arguments) < len(node.keywords) or any(k.arg is None for k in node.keywords):
        raise ValueError("the name must be one, and each argument named once")
    return _call(name, arguments)


def _value(node: ast.expr) -> Any:
    """A literal's value; JSON's words for true, false and null are known too."""
    if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
        return {"true": True, "false": False, "null": None}[node.id]
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(e) for e in node.elts]
    if isinstance(node, ast.Dict):
        return {_key(k): _value(v) for k, v in zip(node.keys, node.values, strict=True)}
    value = ast.literal_eval(node)
    if not isinstance(value, (str, int, float, bool, type(None))):
        raise ValueError(f"{value!r:.40} has no form in JSON")
    return value


def _key(node: ast.expr | None) -> str:
    key = ast.literal_eval(node) if node is not None else None
    if not isinstance(key, str):
        raise ValueError("keys are texts")
    return key


def _literal(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k, ensure_ascii=False)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _python_rules(rule: str, function: Function) -> list[str]:
    """Rules for `name(a=…, b=…)`: arguments in the schema's order, those not required may be left out."""
    schema = parameters_of(function)
    shared = {k: schema[k] for k in ("$defs", "definitions") if k in schema}
    required = set(schema.get("required") or ())
    properties = dict(schema.get("properties") or {})
    if unknown := required - set(properties) | {p for p in properties if not p.isidentifier()}:
        raise InvalidInputError(
            f"tools: {function['name']!r} has parameters that cannot be written as a call: {sorted(unknown)}.",
            hint="This model's calls are Python's: each parameter needs a schema and a name that is an identifier.",
        )
    rules = [f'{rule}: "{function["name"]}(" {rule}h0 ")"']
    for n, (name, value) in enumerate(properties.items()):
        given = {**shared, **value} if isinstance(value, Mapping) else {}
        argument = f'"{name}=" %json {_schema_text(given, json_allowed_escapes="nrt" + chr(92) + chr(34))}'
        rules.append(f"{rule}a{n}: {argument}")
        skip = name not in required
        rules.append(f"{rule}h{n}: {rule}a{n} {rule}t{n + 1}" + (f" | {rule}h{n + 1}" if skip else ""))
        rules.append(f'{rule}t{n}: ", " {rule}a{n} {rule}t{n + 1}' + (f" | {rule}t{n + 1}" if skip else ""))
    return [*rules, f'{rule}h{len(properties)}: ""', f'{rule}t{len(properties)}: ""']
