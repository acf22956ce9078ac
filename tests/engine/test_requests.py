"""Requests that make no sense are refused where they are made."""

from __future__ import annotations

import math

import pytest
from engine_fakes import request

from izwi_lab.engine.request import Priority, Sharing
from izwi_lab.errors import InvalidInputError


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prompt": ()}, "the prompt is empty"),
        ({"prompt": (1, 2.5)}, "tuple of whole numbers"),
        ({"prompt": (True,)}, "tuple of whole numbers"),
        ({"prompt": (2**63,)}, "64 bits"),
        ({"prompt": (-(2**63) - 1,)}, "64 bits"),
        ({"new": 0}, "max_new_tokens"),
        ({"new": True}, "max_new_tokens"),
        ({"id": ""}, "needs an id"),
        ({"at": math.nan}, "arrival_s must be finite"),
        ({"deadline_s": math.inf}, "deadline_s must be finite"),
        ({"priority": 4}, "priority 4 is unknown"),
    ],
)
def test_what_is_refused(options, told):
    with pytest.raises(InvalidInputError, match=told):
        request(**options)


def test_a_request_says_how_much_room_it_may_need_and_what_may_be_shared():
    asked = request(prompt=(1, 2, 3), new=5, tenant="ada", extra_key=b"voice", model="m", priority=3)
    assert asked.positions == 7, "the last token of an answer is never computed"
    assert asked.priority is Priority.CRITICAL
    assert (asked.scope.model, asked.scope.tenant, asked.scope.extra_key) == ("m", "ada", b"voice")
    shares = [request(sharing=sharing).shared_tokens for sharing in (Sharing.NOTHING, Sharing.PROMPT, Sharing.ALL)]
    assert shares == [0, 3, None]
