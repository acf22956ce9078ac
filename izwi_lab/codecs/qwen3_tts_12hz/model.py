"""The codec of Qwen3-TTS: 24 kHz speech as frames of 16 codes, 12.5 a second, and back, with state in both directions.

| verb | in | out |
|---|---|---|
| encode(audio) | Audio of any rate | codes int32 [16, F], F = ceil(S / 1920) |
| decode(codes) | codes [16, F] | Audio at 24 kHz, 1920 samples for each frame |
| stream() | | CodecStream: codes in pieces of any size, samples out as they come |

Decoding is causal: everything is decoded in one stateful pass, so `decode` and a stream in any pieces give the same
samples: to the bit at the official sizes with the native kernels of a CPU, else but for the rounding of sums. Cost is
linear in length. The vendor's package decodes up to 300 frames at once, as here, and longer clips in pieces of 300 with
only 25 frames before each: beyond 300 frames its samples are an approximation of these.

The encoder is Mimi's (Kyutai): its attention sees 250 positions, ten seconds. The vendor's package, with the
transformers 4.57.3 that it pins, ignores that window; transformers 5 and Kyutai's own code apply it, as does this one.
Codes are the same for audio up to ten seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from izwi_lab.artifacts.checkpoint import open_checkpoint
from izwi_lab.audio import Audio
from izwi_lab.backends.base import Backend, BackendPlan, Native
from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import Layout, ModelVariant
from izwi_lab.codecs.qwen3_tts_12hz import weights
from izwi_lab.codecs.qwen3_tts_12hz.config import CodecConfig
from izwi_lab.codecs.qwen3_tts_12hz.processor import checked_codes, checked_samples
from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.shared.closed import ClosedNet
from izwi_lab.families.shared.taps import Replace, Taps, tapping

DECODE_FRAMES = 16  # per pass: 1.3 s, whose rows fit the caches of a CPU
ENCODE_FRAMES = 25  # per pass: 2 s


class CodecStream:
    """Codes to samples, piece by piece. It holds the past: some rows for each convolution, one window of keys."""

    def __init__(self, codec: Codec12Hz, state: dict[str, Any] | None = None, frames: int = 0) -> None:
        self._codec, self._state, self.frames = codec, state or {}, frames

    def push(self, codes: np.ndarray, *, cancel: CancelToken | None = None) -> np.ndarray:
        """codes: whole numbers [K, f], the frames that follow -> their samples, float32 [f * frame_samples].

        Raises:
            InvalidInputError: wrong shape, type or range; the stream is then as it was.
            Cancelled: between passes of 16 frames; the stream stands after those decoded and must be dropped.
        """
        out = [np.zeros(0, np.float32)]
        for piece in self._pieces(checked_codes(codes, self._codec.config), cancel):
            out.append(self._codec.run_decoder(piece, self._state))
            self.frames += piece.shape[1]
        return np.concatenate(out)

    def skip(self, codes: np.ndarray, *, cancel: CancelToken | None = None) -> None:
        """As `push` of codes whose samples are not wanted, such as those of a reference clip: a fraction of the work.

        The samples that follow are the same: only the frames that the vocoder still sees go through it.
        """
        checked = checked_codes(codes, self._codec.config)
        seen = max(0, checked.shape[1] - self._codec.config.decoder.past_frames)
        for piece in self._pieces(checked[:, :seen], cancel):
            self._codec.run_transformer(piece, self._state)
            self.frames += piece.shape[1]
        self.push(checked[:, seen:], cancel=cancel)

    def _pieces(self, codes: np.ndarray, cancel: CancelToken | None) -> Iterator[np.ndarray]:
        for start in range(0, codes.shape[1], DECODE_FRAMES):
            if cancel is not None:
                cancel.check()
            yield codes[:, start : start + DECODE_FRAMES]

    def fork(self) -> CodecStream:
        """A stream that goes on from here by itself. Arrays are shared until one of the two moves on."""
        return CodecStream(self._codec, dict(self._state), self.frames)

    @property
    def nbytes(self) -> int:
        """Bytes of the past that is held."""
        arrays = (a for kept in self._state.values() for a in (kept if isinstance(kept, tuple) else (kept,)))
        return sum(int(a.nbytes) for a in arrays)

    def __repr__(self) -> str:
        seconds = self.frames * self._codec.frame_samples / self._codec.rate_hz
        return f"CodecStream({self.frames} frames, {seconds:.2f} s, {self.nbytes / 1e6:.1f} MB held)"


class Codec12Hz:
    """A loaded codec. Immutable; streams hold the past.

    variant, plan: of a codec that was loaded by itself; None of one that came with a model.

    >>> codec = izwi.load("Qwen3-TTS-Tokenizer-12Hz")                            # doctest: +SKIP
    >>> codec.decode(codec.encode(izwi.Audio.open("clip.wav")))                  # doctest: +SKIP
    """

    variant: ModelVariant | None = None
    plan: BackendPlan | None = None

    def __init__(self, config: CodecConfig, backend: Backend, net: Any) -> None:
        self.config, self.backend, self.net = config, backend, net
        self._nbytes: int = net.held_bytes()

    def __repr__(self) -> str:
        facts = f"{self.codebooks} codebooks, {self.rate_hz / self.frame_samples:g} frames/s, {self.rate_hz} Hz"
        return f"Codec12Hz({facts}, {self.backend.name} {self.backend.device}, {self.nbytes / 1e6:.0f} MB)"

    @property
    def rate_hz(self) -> int:
        """Samples per second."""
        return self.config.rate_hz

    @property
    def frame_samples(self) -> int:
        """Samples of one frame."""
        return self.config.frame_samples

    @property
    def codebooks(self) -> int:
        """Codes of one frame."""
        return self.config.codebooks

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as held."""
        return 0 if isinstance(self.net, ClosedNet) else self._nbytes

    def close(self) -> None:
        """Drop the weights; the codec cannot be used afterwards."""
        self.net = ClosedNet("Qwen3-TTS-Tokenizer-12Hz")

    def tap(self, patterns: str | Sequence[str], *, replace: Replace | None = None) -> AbstractContextManager[Taps]:
        """Read or replace intermediates: "encoder.latent", "decoder.layers.*", "decoder.stages.*" and so on."""

        def array(values: np.ndarray, like: Native) -> Native:
            return self.backend.array(values, dtype="float32")

        return tapping(patterns, numpy=self.backend.numpy, array=array, replace=replace)

    def encode(self, audio: Audio, *, cancel: CancelToken | None = None) -> np.ndarray:
        """Codes int32 [K, F], F = ceil(S / frame_samples). The audio is resampled to the codec's rate if need be.

        Raises AudioError for empty audio, NaN or infinity.
        """
        samples = checked_samples(audio, self.config)
        block, state, out = ENCODE_FRAMES * self.frame_samples, dict[str, Any](), []
        for start in range(0, len(samples), block):
            if cancel is not None:
                cancel.check()
            with self.backend.inference():
                piece = self.backend.array(samples[None, start : start + block], dtype="float32")
                codes = self.net.encoder(piece, state)
                self.backend.evaluate(codes, state)
                out.append(self.backend.numpy(codes)[0].astype(np.int32))
        return np.concatenate(out, axis=1)

    def decode(self, codes: np.ndarray, *, cancel: CancelToken | None = None) -> Audio:
        """Audio of codes [K, F]. Raises InvalidInputError for no frames, a wrong shape, type or range."""
        if np.ndim(codes) == 2 and np.shape(codes)[1] == 0:
            raise InvalidInputError("There are no frames to decode.", hint=f"Expected codes [{self.codebooks}, F].")
        return Audio(self.stream().push(codes, cancel=cancel), self.rate_hz)

    def stream(self) -> CodecStream:
        """A stream at its beginning."""
        return CodecStream(self)

    def run_decoder(self, codes: np.ndarray, state: dict[str, Any]) -> np.ndarray:
        """One pass of the decoder: checked codes [K, f] -> samples, moving `state` on. For streams."""
        with self.backend.inference():
            samples = self.net.decoder(self.backend.array(codes[None]), state)
            self.backend.evaluate(samples, state)
            first: np.ndarray = self.backend.numpy(samples)[0]
            return first

    def run_transformer(self, codes: np.ndarray, state: dict[str, Any]) -> None:
        """The part of `run_decoder` before the vocoder: all that frames far back have to do with the next."""
        with self.backend.inference():
            self.backend.evaluate(self.net.decoder.latent(self.backend.array(codes[None]), state), state)


def load_model(
    variant: ModelVariant,
    folder: Path | None,
    plan: BackendPlan,
    backend: Backend,
    *,
    layout: str,
    load_format: str = "auto",
) -> Codec12Hz:
    """The codec by itself, as a variant of the catalog. layout: "hf"; see `load`."""
    if layout != Layout.HF:
        raise CheckpointError(f"The codec cannot be read from the layout {layout!r}.", hint="Expected hf.")
    codec = load(folder, backend, load_format=load_format)
    codec.variant, codec.plan = variant, plan
    return codec


def load(
    folder: Path | None, backend: Backend, *, config: CodecConfig | None = None, load_format: str = "auto"
) -> Codec12Hz:
    """Load the official `speech_tokenizer` folder (config.json, model.safetensors).

    config: sizes in place of the folder's. load_format: "dummy" for random weights, of the sizes given or the official.

    Raises CheckpointError for a folder that is no such codec, or whose names and shapes are not exactly the expected.
    """
    package, state = "izwi_lab.codecs.qwen3_tts_12hz", None
    if load_format == "dummy":
        config = config or CodecConfig()
    elif folder is None:
        raise CheckpointError("The codec needs a folder.", hint="Expected the model's speech_tokenizer folder.")
    else:
        checkpoint = open_checkpoint(folder, "hf")
        config = config or CodecConfig.from_hf(checkpoint.config)
        state = weights.CodecWeights(checkpoint, config)
    net = backend.net(package, "CodecNet", config, state, keep_float32=weights.FLOAT32)
    return Codec12Hz(config, backend, net)
