"""What a beam says of itself: to whoever looks at it, and why nothing goes on."""

from __future__ import annotations

import html
import math

from bytelm.beam.base import Beam, last_bytes
from bytelm.models.logprobs import EOS, escape
from bytelm.vocabulary.trie import ROOT


def why_empty(beam: Beam, b: int) -> str:
    """Why nothing goes on with a byte or EOS."""
    what = "EOS" if b == EOS else repr(bytes([b]))
    if b != EOS and beam.source.trie.child(ROOT, b) < 0:
        return (
            f"no tokenization of {last_bytes(beam.context)} goes on with {what}: the vocabulary "
            "has no token that begins with this byte"
        )
    if beam.at_limit:
        return (
            f"nothing can follow {last_bytes(beam.context)}: the text is as long as the model "
            f"takes, {beam.source.lm.max_context_tokens} tokens"
        )
    advice = "raise K, lower prune_threshold" + ("" if beam.params.heal else ", or allow heal")
    return f"no tokenization of {last_bytes(beam.context)} goes on with {what}: {advice}"


def as_text(beam: Beam) -> str:
    """Its candidates with their shares, a line for each."""
    lines = [f"Z: {beam.logZ}", "Candidates:"]
    lines += [f"({math.exp(c.weight - beam.log_weight):.4f}) {c!r}" for c in beam]
    if beam.deferred_share:
        lines.append(f"deferred: {beam.deferred_share:.2g} of this")
    return "\n".join(lines) + "\n"


def as_html(beam: Beam) -> str:
    """The same as a table."""
    rows = "".join(
        f"<tr><td>{math.exp(c.weight - beam.log_weight):.4f}</td><td>{c.weight:.2f}</td>"
        f"<td><code>{html.escape(repr(c.lm_state))}</code></td>"
        f"<td><code>{html.escape(escape(c.partial))}{'&lt;EOS&gt;' if c.terminated else ''}"
        "</code></td></tr>"
        for c in beam
    )
    return (
        f"<p>Z: {beam.logZ}</p><table><tr><th>share</th><th>weight</th><th>tokens</th>"
        f"<th>partial</th></tr>{rows}</table>"
    )
