"""The sandbox that chat templates run in: no way into Python, and an account of steps, sizes and seconds.

Jinja's own sandbox closes the way out but bounds no work. Here every loop body, loop condition, macro and filter ticks
the account, and whatever makes texts or lists longer is weighed before it is made.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.shared import template_account as use

MAX_TEMPLATE = 100_000  # characters: compiling takes time too; published ones have up to 20,000
_CALL = 32  # characters that a call, and each of its arguments, counts for
_LEFT_OUT = ("wordwrap", "urlize", "xmlattr", "pprint", "random", "sum")  # unbounded, and no chat template's business


@lru_cache(maxsize=16)
def compiled(template: str) -> Any:
    """The template, ready to render under a `template_account.account`.

    Raises:
        CheckpointError: it is too long, or no Python can be made of it. jinja2.TemplateError, RecursionError: it is
            malformed.
    """
    if len(template) > MAX_TEMPLATE:
        raise CheckpointError(
            f"The chat template has {len(template)} characters, more than {MAX_TEMPLATE}.", hint="Use template=False."
        )
    try:
        return _environment().from_string(template)
    except (SyntaxError, MemoryError) as error:  # what Python makes of 25 nested loops, or of 7000 branches
        reason = str(error) or "it is nested too deeply"
        raise CheckpointError(f"The chat template is malformed: {reason}.", hint="Use template=False.") from None


@lru_cache(maxsize=16)
def variables_of(template: str) -> frozenset[str]:
    """The names that a template looks up: what it can be told. None where it is malformed; rendering says how."""
    from jinja2 import TemplateError, meta

    if len(template) > MAX_TEMPLATE:
        return frozenset()
    try:
        return frozenset(meta.find_undeclared_variables(_environment().parse(template)))
    except (TemplateError, RecursionError):
        return frozenset()


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import pass_context
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    metered = _metered()

    class Environment(ImmutableSandboxedEnvironment):
        """Jinja's sandbox with the account."""

        intercepted_binops = frozenset(("*", "**", "+", "%"))
        concat = staticmethod(use.concat)

        def _generate(self, source: Any, *args: Any, **kwargs: Any) -> Any:
            return super()._generate(metered.visit(source), *args, **kwargs)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            use.check_operator(operator, left, right)
            return use.weighed(super().call_binop(context, operator, left, right))

        def wrap_str_format(self, value: Any) -> Any:
            filled = super().wrap_str_format(value)
            if filled is None:
                return None
            pattern, mapped = str(value.__self__), value.__name__ == "format_map"

            def checked(*args: Any, **kwargs: Any) -> Any:
                use.check_format(pattern, [*(args[0].values() if mapped else args), *kwargs.values()])
                return filled(*args, **kwargs)

            return checked

        def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
            owner = getattr(__obj, "__self__", None)
            if isinstance(owner, (str, dict, list, tuple, int, float)):
                args = use.checked_call(owner, __obj.__name__, args)
            use.made(_CALL * (1 + len(args) + len(kwargs)))  # a namespace keeps what it is given
            return use.weighed(super().call(__context, __obj, *args, **kwargs))

    # Trimmed blocks and loop controls are what transformers gives templates; they are written for it.
    made = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols], finalize=_finalize)
    made.globals.pop("lipsum")
    made.globals.update(raise_exception=_refuse, strftime_now=_strftime_now, range=_range)
    own = _filters(dict(made.filters))
    made.filters = {name: _ticked(own.get(name, f)) for name, f in made.filters.items() if name not in _LEFT_OUT}
    # These look at the context only so that they are not computed when the template is compiled.
    made.filters["_tick"] = pass_context(lambda context, value: use.tick() or True)  # type: ignore[func-returns-value]
    made.filters["_joined"] = pass_context(lambda context, parts: use.joined(parts))
    made.filters["_weighed"] = pass_context(lambda context, value: use.weighed(value))
    return made


def _metered() -> Any:
    """Adds the ticks to a parsed template, and weighs what `~`, lists, mappings and slices make."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    def asked(name: str, inner: Any) -> Any:
        return nodes.Filter(inner, name, [], [], None, None)

    def ticking(body: list[Any]) -> list[Any]:
        return [nodes.ExprStmt(asked("_tick", nodes.Const(None))), *body]

    class Metered(NodeTransformer):
        def visit_For(self, node: Any) -> Any:
            node = self.generic_visit(node)
            node.body = ticking(node.body)
            if node.test is not None:
                node.test = nodes.And(asked("_tick", nodes.Const(None)), node.test)
            return node

        def visit_Macro(self, node: Any) -> Any:
            node = self.generic_visit(node)
            node.body = ticking(node.body)
            return node

        visit_CallBlock = visit_Macro

        def visit_Concat(self, node: Any) -> Any:
            return asked("_joined", nodes.List([self.visit(n) for n in node.nodes]))

        def visit_Getitem(self, node: Any) -> Any:
            node = self.generic_visit(node)
            return asked("_weighed", node) if isinstance(node.arg, nodes.Slice) else node

        def visit_Compare(self, node: Any) -> Any:
            return asked("_weighed", self.generic_visit(node))

        def visit_List(self, node: Any) -> Any:
            node = self.generic_visit(node)
            return asked("_weighed", node) if getattr(node, "ctx", "load") == "load" else node

        visit_Dict = visit_Tuple = visit_List

    return Metered()


def _ticked(plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(plain)  # keeps jinja's mark of what is passed first
    def filtered(*args: Any, **kwargs: Any) -> Any:
        use.tick()
        return use.weighed(plain(*args, **kwargs))

    return filtered


def _filters(plain: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The filters that make texts or lists longer, with a look at the size first."""
    from jinja2 import pass_environment

    def replace(text: Any, old: Any, new: Any, count: int = -1) -> str:
        use.check_replace(text, old, new)
        return str(text).replace(str(old), str(new), count)

    @pass_environment
    def join(environment: Any, value: Any, d: Any = "", attribute: Any = None) -> str:
        if attribute is not None:
            value = [environment.getitem(v, attribute) for v in value]
        return str(d).join(map(str, use.check_join(d, value)))

    def indent(text: Any, width: Any = 4, first: bool = False, blank: bool = False) -> Any:
        use.check_width(width, str(text).count("\n") + 1)
        return plain["indent"](text, width, first, blank)

    def center(text: Any, width: int = 80) -> str:
        use.check_width(width)
        return str(text).center(width)

    def formatted(pattern: Any, *values: Any, **named: Any) -> Any:
        use.check_format(str(pattern), [*values, named])
        return plain["format"](pattern, *values, **named)

    def batch(value: Any, linecount: int, fill_with: Any = None) -> Any:
        use.check_width(linecount)
        return plain["batch"](value, linecount, fill_with)

    def sliced(value: Any, slices: int, fill_with: Any = None) -> Any:
        use.check_width(slices)
        return plain["slice"](value, slices, fill_with)

    def string(value: Any) -> str:
        return str(use.weighed(value))

    def listed(value: Any) -> list[Any]:
        use.allow(9 * len(value) if isinstance(value, str) else 0)  # each letter becomes a text of its own
        return list(value)

    found: dict[str, Callable[..., Any]] = dict(
        replace=replace, join=join, indent=indent, center=center, format=formatted, batch=batch, slice=sliced
    )
    return {**found, "string": string, "list": listed, "tojson": _tojson}


def _range(*bounds: int) -> range:
    span = range(*bounds)
    use.allow(len(span), use.MAX_TICKS)
    return span


def _finalize(value: Any) -> Any:
    return use.weighed(value) if isinstance(value, (list, tuple, dict)) else value


def _refuse(message: str) -> None:
    raise InvalidInputError(f"The chat template refuses these messages: {message}.")


def _strftime_now(format: str) -> str:
    from datetime import datetime

    use.check_format(format.replace("%", ""), "")
    return datetime.now().strftime(format)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    use.check_width(indent or 0)
    use.allow(use.weight(value) * (1 + (indent or 0)))
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if ensure_ascii:  # but for private-use characters, with which `prompts` marks what was typed
        text = "".join(c if c < "\x7f" or "\ue000" <= c <= "\uf8ff" else json.dumps(c)[1:-1] for c in text)
    return text
