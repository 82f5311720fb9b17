"""What calls can be told, as keywords; what is left out is the server's default.

Must not know contexts, nor how a call is sent.
"""

from collections.abc import Mapping
from typing import Any, Literal

from typing_extensions import TypedDict

from bytelm_client.contexts import Texts, bytes_json


class Beam(TypedDict, total=False):
    """The beam's parameters.

    Attributes:
        K: the most candidates; None for any number, where the server allows it.
        prune_threshold: the share of the whole below which a candidate is dropped.
        eos_tokens: what ends a text, tokens as bytes or ids; None for the model's own.
        heal: look for another reading of the context's end where no candidate can go on.
        heal_max_backoff: the most bytes of a token that healing takes back; None for all.
        heal_max_splits: the most tokens that healing ends inside these; None for any number.
        special_tokens: ``"literal"`` reads special tokens as the bytes of their names.
    """

    K: int | None
    prune_threshold: float
    eos_tokens: list[bytes | int] | tuple[bytes | int, ...] | None
    heal: bool
    heal_max_backoff: int | None
    heal_max_splits: int | None
    special_tokens: Literal["special", "literal"]


class BeamOptions(TypedDict, total=False):
    """What every call can be told.

    Attributes:
        beam: the beam's parameters.
        prefill: ``"fast"``, or ``"exact"`` to follow the beam through all of the context.
    """

    beam: Beam | None
    prefill: Literal["fast", "exact"]


class GreedyOptions(BeamOptions, total=False):
    """What ``greedy`` can be told.

    Attributes:
        stop: what ends the text where it is complete; not returned.
        logprobs: also give the log-probability of what is returned.
    """

    stop: str | bytes | Texts | None
    logprobs: bool


class SampleOptions(GreedyOptions, total=False):
    """What ``sample`` can be told.

    Attributes:
        temperature: above 0; below 1 sharpens, above 1 flattens.
        top_k: keep so many bytes, the most probable.
        top_p: keep the fewest that together have this probability.
        min_p: keep those at least this times as probable as the best.
        seed: the same one draws the same bytes; None draws anew.
        method: how to draw: by ``"byte"``; by ``"token"``, which is faster but takes no filters;
            ``"auto"``: by token wherever that is possible.
        valid_utf8: draw only what continues valid UTF-8, and end on a whole character.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    seed: int | None
    method: Literal["auto", "token", "byte"]
    valid_utf8: bool


class ScoreOptions(BeamOptions, total=False):
    """What ``score`` can be told.

    Attributes:
        eos: score the end of the text, too.
        per_byte: also give each byte's log-probability.
    """

    eos: bool
    per_byte: bool


class SessionOptions(BeamOptions, total=False):
    """What a new session can be told.

    Attributes:
        max_context_length: keep so many tokens at most, the last ones; None keeps all.
        ttl: seconds without use after which it expires; None is the server's.
    """

    max_context_length: int | None
    ttl: float | None


def options_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the API takes them."""
    fields = dict(options)
    if fields.get("beam") is None:
        fields.pop("beam", None)
    elif (tokens := fields["beam"].get("eos_tokens")) is not None:
        written = [list(token) if isinstance(token, bytes) else token for token in tokens]
        fields["beam"] = {**fields["beam"], "eos_tokens": written}
    stop = fields.get("stop")
    if isinstance(stop, str | bytes):
        stop = [stop]
    if stop is not None:
        fields["stop"] = [bytes_json(string) for string in stop]
    return fields
