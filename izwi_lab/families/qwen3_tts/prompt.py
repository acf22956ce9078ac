"""How a prompt is laid out: which text id and which codec id, speaker vector or reference frame meet at each position.

The talker reads sums: at every position a projected text embedding plus, after the role, a codec embedding. Source:
qwen-tts 0.1.1, `generate` and `generate_icl_prompt` of modeling_qwen3_tts.py. Shapes: T positions, K codebooks,
R reference frames, H talker width.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.shared.steps import Prompt, Span

NONE = -1  # in Layout.codec: this position has no codec id
_SHOWN, _ROWS = 24, 100  # positions in a line, and in a table


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Everything the talker reads before its first frame, and the text that comes with the frames after it.

    text: int32 [T], the text id of every position; tts_pad where the text side waits. codec: int32 [T], the codec id,
    or -1 where there is none: role and instruction, the speaker vector, reference frames. speaker_at: where the
    codec side is the vector `speaker`, float32 [H]; -1 for nowhere. reference: codes int32 [K, R] whose frames are the
    codec side from reference_at on. trailing: int32 [n], text ids added to the frames that are generated, one each;
    after them tts_pad for ever. codec_names: what the codec side of each position is, for people.
    """

    text: np.ndarray
    codec: np.ndarray
    trailing: np.ndarray
    speaker_at: int = -1
    speaker: np.ndarray | None = None
    reference_at: int = -1
    reference: np.ndarray | None = None
    codec_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.text)

    def __repr__(self) -> str:
        parts = [f"{len(self)} positions", f"{len(self.trailing)} text ids to follow"]
        if self.speaker_at >= 0:
            parts.append(f"speaker vector at {self.speaker_at}")
        if self.reference is not None:
            parts.append(f"{self.reference.shape[1]} reference frames from {self.reference_at}")
        return f"Layout({', '.join(parts)})"


@dataclass(frozen=True, slots=True, repr=False)
class SpeechPrompt(Prompt):
    """A prompt of two streams, which meet at every position: text, and what the codec side is there."""

    def streams(self) -> list[tuple[int, str, str]]:
        """(position, text piece, codec piece) rows; "" where the text waits, or where there is no codec side.

        Positions from len(self) on are those of generated frames; their codec piece is "frame n".
        """
        layout: Layout = self.extras["layout"]
        rows = [(n, text, codec) for n, (text, codec) in enumerate(zip(self.pieces, layout.codec_names, strict=True))]
        following = self.extras.get("trailing_pieces", ())
        return rows + [(len(layout) + n, piece, f"frame {n}") for n, piece in enumerate(following)]

    def __repr__(self) -> str:
        shown = "|".join(f"{text}+{codec}" if codec else text for _, text, codec in self.streams()[:_SHOWN])
        more = "…" if len(self.streams()) > _SHOWN else ""
        return f"SpeechPrompt({len(self)} positions, text+code: {shown + more!r})"

    def _repr_html_(self) -> str:
        """Both streams as a table; what the user wrote is escaped."""
        rows = self.streams()
        left = "<td style='text-align:left'><code>{}</code></td>"
        cells = "".join(
            f"<tr><td style='text-align:right'>{n}</td>{left.format(html.escape(text))}"
            f"{left.format(html.escape(codec))}</tr>"
            for n, text, codec in rows[:_ROWS]
        )
        facts = f"{len(self)} positions" + (f", of which {_ROWS} are shown" if len(rows) > _ROWS else "")
        head = "<tr><th>position</th><th style='text-align:left'>text</th><th style='text-align:left'>code</th></tr>"
        return f"<table>{head}{cells}</table><div style='opacity:.75;font-size:90%'>{facts}</div>"


@dataclass(frozen=True, slots=True)
class Words:
    """Ids of the texts of a prompt. role: the begin of the model's turn; reference: what the reference audio says.

    instruct: a whole turn of the user.
    """

    role: Sequence[int]
    text: Sequence[int]
    instruct: Sequence[int] = ()
    reference: Sequence[int] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Speaker:
    """Whose voice: a codec id of the model, or a vector float32 [H], or neither; codes: int32 [K, R] to go on from."""

    name: str = ""
    id: int | None = None
    vector: np.ndarray | None = None
    codes: np.ndarray | None = None


@dataclass(slots=True)
class _Draft:
    """A layout being written, position by position."""

    text: list[int] = field(default_factory=list)
    codec: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def add(self, name: str, text: Sequence[int], codec: Sequence[int], names: Sequence[str]) -> None:
        """Some positions; the three lists have one length, and none is added where they are empty."""
        self.span(name, len(text))
        self.text += text
        self.codec += codec
        self.names += names

    def span(self, name: str, length: int, *, after: int = 0) -> None:
        """Name a stretch that begins `after` positions from here."""
        if length > 0:
            self.spans.append(Span(name, len(self.text) + after, len(self.text) + after + length))


def lay_out(
    config: TTSConfig, words: Words, speaker: Speaker, *, language: str | None, whole: bool
) -> tuple[Layout, tuple[Span, ...]]:
    """The layout of a prompt, and its parts by name (parts of the two sides may overlap).

    language: a key of config.languages, None for the model to find out. whole: all the text is before the first
    frame; otherwise the frames begin with the first text id, or with the reference, and the rest of the text follows.
    """
    draft, ids = _Draft(), config.ids
    draft.add("instruct", words.instruct, [NONE] * len(words.instruct), [""] * len(words.instruct))
    draft.add("role", words.role, [NONE] * len(words.role), [""] * len(words.role))
    speaker_at = _tags(draft, config, speaker, language)
    reference_at, trailing = -1, []
    if speaker.codes is None:
        if whole:
            _read(draft, config, words)
            draft.add("start", [ids.tts_pad], [ids.codec_bos], ["bos"])
        else:
            draft.add("text", words.text[:1], [ids.codec_bos], ["bos"])
            trailing = [*words.text[1:], ids.tts_eos]
    else:
        frames = speaker.codes.shape[1]
        side = [ids.codec_bos] + [NONE] * frames
        names = ["bos", *(f"reference {n}" for n in range(frames))]
        if whole:
            _read(draft, config, words)
            reference_at = len(draft.text) + 1
            draft.span("reference", frames, after=1)
            draft.add("start", [ids.tts_pad] * len(side), side, names)
        else:
            said = [*words.reference, *words.text, ids.tts_eos]
            here, trailing = said[: len(side)], said[len(side) :]
            known = len(words.reference)
            reference_at = len(draft.text) + 1
            draft.span("reference", frames, after=1)
            draft.span("reference text", min(known, len(here)))
            draft.span("text", min(len(here), known + len(words.text)) - known, after=known)
            draft.add("start", here + [ids.tts_pad] * (len(side) - len(here)), side, names)
    layout = Layout(
        np.asarray(draft.text, np.int32),
        np.asarray(draft.codec, np.int32),
        np.asarray(trailing, np.int32),
        speaker_at,
        speaker.vector,
        reference_at,
        speaker.codes,
        tuple(draft.names),
    )
    return layout, tuple(draft.spans)


def _tags(draft: _Draft, config: TTSConfig, speaker: Speaker, language: str | None) -> int:
    """The language's tags, the voice and the pad before the frames; returns where the speaker's vector is, or -1."""
    ids, at = config.ids, -1
    if language is None:
        tags = [ids.nothink, ids.think_bos, ids.think_eos]
        names = ["nothink", "think_bos", "think_eos"]
    else:
        tags = [ids.think, ids.think_bos, config.languages[language], ids.think_eos]
        names = ["think", "think_bos", language, "think_eos"]
    draft.add("language", [ids.tts_pad] * len(tags), tags, names)
    if speaker.vector is not None:
        at = len(draft.text)
        draft.add("voice", [ids.tts_pad], [NONE], [f"voice {speaker.name}".strip()])
    elif speaker.id is not None:
        draft.add("voice", [ids.tts_pad], [speaker.id], [speaker.name])
    draft.add("begin", [ids.tts_bos], [ids.codec_pad], ["pad"])
    return at


def _read(draft: _Draft, config: TTSConfig, words: Words) -> None:
    """Text that is read before any frame: beside the codec's pad, ended by tts_eos."""
    ids = config.ids
    for name, part in (("reference text", words.reference), ("text", words.text), ("end of text", [ids.tts_eos])):
        draft.add(name, part, [ids.codec_pad] * len(part), ["pad"] * len(part))
