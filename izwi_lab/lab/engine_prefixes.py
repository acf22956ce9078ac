"""Prefix tree: the beginnings that later prompts would find in a model's caches, as text, and who holds them now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from itertools import groupby

from izwi_lab.engine.block_view import PrefixNode
from izwi_lab.engine.timeline import Explanation
from izwi_lab.families.shared.text_model import TextModel
from izwi_lab.lab import engine_ink as ink
from izwi_lab.lab.labels import check_text_model

_LINES = 200  # in a notebook
_PLAIN_LINES = 40
_CHARS = 240
_SOME = 8  # ids of a stretch, where there is no text
_GREY = "opacity:.75;font-size:90%"
_TEXT = "white-space:pre-wrap;background:rgba(127,127,127,.15);padding:0 .3em"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Blocks that follow each other without a branch, all held by the same requests.

    depth: branches before it. tokens: their ids; text: what they say. holders: ids of requests; () where nobody does.
    """

    depth: int
    blocks: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    holders: tuple[str, ...]

    def __str__(self) -> str:
        size = f"{len(self.blocks)} block{'s' if len(self.blocks) > 1 else ''}, {len(self.tokens)} tokens"
        return f"{size}, {'held by ' + ', '.join(map(ink.short, self.holders)) if self.holders else 'cached'}"


@dataclass(frozen=True, slots=True, repr=False)
class PrefixText:
    """The tree of beginnings by model and tenant: each stretch after what it follows on."""

    roots: tuple[tuple[str, tuple[Stretch, ...]], ...]

    def __repr__(self) -> str:
        lines = []
        for root, stretches in self.roots:
            lines.append(root)
            lines += [f"{'  ' * (s.depth + 1)}{_cut(s.text)!r} ({s})" for s in stretches]
        more = [f"… {len(lines) - _PLAIN_LINES} more"] if len(lines) > _PLAIN_LINES else []
        return "\n".join([*lines[:_PLAIN_LINES], *more]) or "PrefixText(nothing cached)"

    def _repr_html_(self) -> str:
        """Stretches indented by branch; the text is shown as it is, not run."""
        lines = []
        for root, stretches in self.roots:
            lines.append(f'<div style="{_GREY}">{escape(root)}</div>')
            lines += [_html(stretch) for stretch in stretches]
        hidden = len(lines) - _LINES
        more = f'<div style="{_GREY}">and {hidden} more</div>' if hidden > 0 else ""
        return f"<div>{''.join(lines[:_LINES]) or 'nothing cached'}{more}</div>"


def prefix_tree(explanation: Explanation, model: TextModel | None = None) -> PrefixText:
    """The tree of an explanation. model: reads its ids as text, control tokens by their names; None shows ids.

    Raises:
        InvalidInputError: the model is no text model.

    >>> izwi.lab.prefix_tree(engine.explain("SmolLM2-135M-Instruct"), model)        # doctest: +SKIP
    """
    if model is not None:
        check_text_model(model)
    held = {block.id: _requests(block.sequences) for block in explanation.blocks.blocks}
    roots = []
    for scope, nodes in explanation.prefixes.roots:
        key = f", key {scope.extra_key.hex()[:8]}" if scope.extra_key else ""
        tenant = f", tenant {scope.tenant}" if scope.tenant else ""
        roots.append((f"{scope.model or 'model'}{tenant}{key}", tuple(_stretches(nodes, held, model))))
    return PrefixText(tuple(roots))


def _requests(sequences: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(ink.request_of, sequences)))


def _stretches(
    nodes: tuple[PrefixNode, ...], held: dict[int, tuple[str, ...]], model: TextModel | None
) -> list[Stretch]:
    """Depth first, without recursion: a chain may be longer than Python's stack is deep."""
    found = []
    waiting = [(node, 0) for node in reversed(nodes)]
    while waiting:
        node, depth = waiting.pop()
        blocks, ids, holders = [node.block], node.tokens, held.get(node.block, ())
        while len(node.children) == 1 and held.get(node.children[0].block, ()) == holders:
            node = node.children[0]
            blocks.append(node.block)
            ids += node.tokens
        found.append(Stretch(depth, tuple(blocks), ids, _text(ids, model), holders))
        waiting += [(child, depth + 1) for child in reversed(node.children)]
    return found


def _text(ids: tuple[int, ...], model: TextModel | None) -> str:
    if model is None or model.processor is None:
        return " ".join(map(str, ids[:_SOME])) + (" …" if len(ids) > _SOME else "")
    token_bytes = model.processor.token_bytes
    runs = [(spoken, tuple(run)) for spoken, run in groupby(ids, key=lambda token: bool(token_bytes(token)))]
    return "".join(model.detokenize(run) if spoken else "".join(map(model.text, run)) for spoken, run in runs)


def _cut(text: str) -> str:
    half = _CHARS // 2
    return text if len(text) <= _CHARS else f"{text[:half]} … {text[-half:]}"


def _html(stretch: Stretch) -> str:
    text = f'<code style="{_TEXT}">{escape(_cut(stretch.text))}</code>'
    facts = f'<span style="{_GREY}">{escape(str(stretch))}</span>'
    return f'<div style="margin-left:{1.5 * stretch.depth + 1:g}em">{text} {facts}</div>'
