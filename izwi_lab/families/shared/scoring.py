"""How likely a text is to a text model: log-probabilities of its ids, in pieces that bound the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from izwi_lab.cancel import CancelToken
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared import text_session
from izwi_lab.families.shared.chooser import Chooser
from izwi_lab.families.shared.steps import Prompt

if TYPE_CHECKING:
    from izwi_lab.families.shared.text_model import TextModel

PIECE = 512  # ids of one pass
SCORED_LOGITS = 1 << 24  # computed at once: 64 MB in float32


def scored(model: TextModel, prompt: str | Prompt, cancel: CancelToken | None) -> np.ndarray:
    """See `TextModel.score`."""
    session, chooser = model.session(), Chooser(model.backend)
    read = model.tokenize(prompt, template=False) if isinstance(prompt, str) else prompt
    text_session.check_step(session, read, cancel, reads=True)
    ids = read.ids.astype(np.int32)
    text_session.check_prompt(session, ids, len(ids), model.config, model.variant.id)
    if len(ids) < 2:
        raise InvalidInputError("One id has nothing before it.", hint="Give at least two.")
    size = max(1, min(PIECE, SCORED_LOGITS // model.config.vocab_size))
    out = []
    for start in range(0, len(ids) - 1, size):
        if cancel is not None:
            cancel.check()
        piece, wanted = ids[start : start + size], ids[start + 1 : start + 1 + size]
        with model.backend.inference():
            logits, _ = model.net.every(model.backend.array(piece[None]), session.state)
            out.append(chooser.logprobs(logits[0, : len(wanted)], wanted))
    return np.concatenate(out)
