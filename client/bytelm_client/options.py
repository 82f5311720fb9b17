"""What calls can be told, as keywords; what is left out is the server's default.

Must not know contexts, nor how a call is sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from typing_extensions import TypedDict

from bytelm_client.contexts import TEXT, Text, Texts, bytes_json

if TYPE_CHECKING:
    from bytelm import BeamParams

Spans: TypeAlias = Sequence[tuple[int, int]]
"""Parts of a text: from which byte on, and before which."""


class Beam(TypedDict, total=False):
    """The beam's parameters.

    Attributes:
        K: the most candidates; None for any number, where the server allows it.
        prune_threshold: the share of the whole below which a token that ends is not evaluated,
            and without ``deferred`` a candidate is dropped.
        eos_tokens: what ends a text, tokens as bytes or ids; None for the model's own.
        heal: look for another reading of the context's end where no candidate can go on.
        heal_max_backoff: the most bytes of a token that healing takes back; None for all.
        heal_max_splits: the most tokens that healing ends inside these; None for any number.
        special_tokens: ``"literal"`` reads special tokens as the bytes of their names.
        deferred: keep the mass of what is dropped, so that no byte has probability zero that can
            be spelled; False divides it away, as genlm-bytes does.
        tokenizations: sum over ``"all"``, or over those that are ``"canonical"``; None for the
            server's default.
        keep_canonical: never drop the canonical tokenization; None for the server's default.
    """

    K: int | None
    prune_threshold: float
    eos_tokens: list[bytes | int] | tuple[bytes | int, ...] | None
    heal: bool
    heal_max_backoff: int | None
    heal_max_splits: int | None
    special_tokens: Literal["special", "literal"]
    deferred: bool
    tokenizations: Literal["all", "canonical"] | None
    keep_canonical: bool | None


class CallOptions(TypedDict, total=False):
    """What every call can be told.

    Attributes:
        timeout: seconds to wait for an answer, of a stream for its next bytes; None waits for ever.
    """

    timeout: float | None


class BeamOptions(CallOptions, total=False):
    """What every call that takes a context can be told.

    Attributes:
        beam: the beam's parameters.
        prefill: ``"fast"``, or ``"exact"`` to follow the beam through all of the context.
    """

    beam: "Beam | BeamParams | None"
    prefill: Literal["fast", "exact"]


class GreedyOptions(BeamOptions, total=False):
    """What ``greedy`` can be told.

    Attributes:
        stop: what ends the text where it is complete; not returned.
        logprobs: also give the log-probability of what is returned.
    """

    stop: Text | Texts | None
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


class PartsOptions(CallOptions, total=False):
    """What every score can be told of what to tell.

    Attributes:
        eos: score the end of the text, too.
        per_byte: also give each byte's log-probability.
        top: also give the most probable bytes in each byte's place, this many.
        spans: also give the log-probability of parts: of the ``"words"``; or of ``(start, end)``,
            offsets in bytes: a list of them for one continuation, a list of lists for several.
    """

    eos: bool
    per_byte: bool
    top: int | None
    spans: Literal["words"] | Spans | Sequence[Spans] | None


class ScoreOptions(PartsOptions, BeamOptions, total=False):
    """What ``score`` can be told."""


class SessionOptions(BeamOptions, total=False):
    """What a new session can be told.

    Attributes:
        max_context_length: keep so many tokens at most, the last ones; None keeps all.
        ttl: seconds without use after which it expires; None is the server's.
    """

    max_context_length: int | None
    ttl: float | None


def score_json(
    continuations: Text | Texts, options: Mapping[str, Any]
) -> tuple[dict[str, Any], bool]:
    """What is to be scored, with its options, as the API takes it; whether it is one.

    Raises:
        TypeError: when something is not what it should be.
    """
    one = isinstance(continuations, TEXT)
    given = [continuations] if isinstance(continuations, TEXT) else continuations
    body = {"continuations": [bytes_json(text) for text in given], **options_json(options)}
    spans = body.get("spans")
    if spans is not None and not isinstance(spans, str):
        several = [spans] if one else spans
        body["spans"] = [[list(span) for span in some] for some in several]
    return body, one


LOCAL = {"verbose", "max_context_length", "eos_byte_strings", "log_prune_threshold"}
"""Parameters of the library's beam that no server's has by this name."""


def options_json(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the API takes them.

    Raises:
        TypeError: when one is not what it should be.
    """
    body = {name: value for name, value in options.items() if name != "timeout"}
    beam = body.pop("beam", None)
    if beam is not None:
        body["beam"] = _beam_json(beam)
    stop = body.get("stop")
    if isinstance(stop, TEXT):
        stop = [stop]
    if stop is not None:
        body["stop"] = [bytes_json(string) for string in stop]
    return body


def _beam_json(beam: Any) -> dict[str, Any]:
    if not isinstance(beam, Mapping):
        from bytelm import BeamParams

        if not isinstance(beam, BeamParams):
            raise TypeError(f'a beam is {{"K": …, …}} or BeamParams, not {beam!r:.60}')
        if beam.max_context_length is not None:
            raise TypeError("max_context_length is an option of a session here, not of its beam")
        given = {
            field.name: getattr(beam, field.name)
            for field in fields(beam)
            # Of what the API may not have, only what says something: it tells of that then.
            if field.name in Beam.__annotations__ or getattr(beam, field.name) != field.default
        }
        eos = {"eos_tokens": beam.eos_byte_strings}
        beam = {**{name: given[name] for name in given if name not in LOCAL}, **eos}
    tokens = beam.get("eos_tokens")
    if tokens is None:
        return dict(beam)
    written = [list(token) if isinstance(token, bytes | bytearray) else token for token in tokens]
    return {**beam, "eos_tokens": written}
