"""The beam in plain Python: what every faster one is compared with, and the page that explains it.

**Definition.** A token LM gives p(t | t1…tn). The probability that a text begins with the bytes x
is a sum over *candidates*: tokens that have ended, and a *partial* token under way, whose bytes
together are x. The weight of a candidate is the probability of its ended tokens times the *mass*
of its partial, which is that of all tokens that begin with it. p(b | x) is the mass of xb divided
by that of all continuations of x. Without limits the beam holds every candidate, and is this sum
(``test_equals_brute_force``).

**Extending.** Where a partial is a token itself, that token may have ended: the *extension* of the
candidate, whose partial is empty. Its weight is known from the candidate's own row, what follows it
takes an evaluation of the tokens with the new one. So extensions below ``prune_threshold`` are not
evaluated, and ``prune`` drops candidates beyond K and below the threshold: this is all that a beam
loses (``test_pruned_mass_is_a_lower_bound``).

**Deferring.** What is dropped has mass all the same, and sometimes all that a byte has: after
"separa" nearly everything stands in " separate", and "b" comes only behind " separ", which ended
two bytes before. With ``deferred`` it stays in the books: as an *item* (the ended tokens with
their exact weight e, and the bytes s since) or, beyond the ``LISTED`` largest, in one *remainder*
r. A stand-in q, a function of the prefix alone, says where it would go::

    p(b | x) = N(xb) / Σ N(x·),   N(xb) = kept mass of xb + (Σ e q(s) + r) q(b)

What was evaluated costs nothing more, so the threshold drops no candidate then, K alone does.
*First the report, then the evaluation*: when b is consumed, items whose share e q(s) of N(xb) is
above the threshold are evaluated, and e q(s) becomes e p(s) from the next report on. So a report is
a function of its prefix, every report sums to 1, and those of all texts of a length do
(``test_reports_of_all_texts_sum_to_one``). Where nothing else is left the canonical tokenization of
xb is evaluated, so that whatever has probability can be consumed
(``test_whatever_has_probability_can_be_consumed``). Kept weights are exact, always, so that their
sum never exceeds the text's probability; the remainder is not let grow beyond it.

**Canonical tokenizations** (arXiv 2506.07956). A tokenizer gives a text one tokenization; a model
was hardly trained on the others. With ``tokenizations="canonical"`` ended tokens are those that can
begin the canonical tokenization of some text, and EOS comes only behind the canonical tokenization
of all of it (``test_canonical_equals_brute_force``).

**Trunks.** Text that is known in advance can begin at any token boundary that every continuation's
canonical tokenization has: p(trunk) cancels in every conditional, and candidates that disagree with
the trunk have little weight. This is an approximation (``prefill.py``); all above is not.

Nothing here is fast, and nothing else of the package imports it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bytelm.beam.params import LISTED, BeamParams
from bytelm.beam.reference_rows import Model, Path
from bytelm.errors import EmptyBeam, VocabError
from bytelm.models.logprobs import EOS, SIZE


@dataclass(frozen=True)
class Candidate:
    """Ended tokens behind the initial context, a partial token, and their log-probability."""

    path: Path
    partial: bytes
    weight: float


@dataclass(frozen=True)
class Item:
    """Ended tokens with their log-probability, the bytes since, and log(e q(s))."""

    path: Path
    since: bytes
    weight: float
    share: float


@dataclass(frozen=True)
class ReferenceState:
    """A beam after ``text``; see this module. ``rest`` is the log of the remainder."""

    model: Model
    params: BeamParams
    text: bytes = b""
    kept: tuple[Candidate, ...] = (Candidate((), b"", 0.0),)
    items: tuple[Item, ...] = ()
    rest: float = -math.inf
    terminated: bool = False

    @property
    def log_z(self) -> float:
        """The log of the kept mass: at most that of the text's probability."""
        return log_sum(c.weight for c in self.kept)

    def logp_next(self) -> NDArray[np.float64]:
        """The report: float64 ``[258]``, natural logarithms."""
        opened, others = self._open()
        total = self._mixed([*self.kept, *opened])
        if self.params.deferred and total.any():
            held = [*(o.weight for o in others), *(i.share for i in self.items), self.rest]
            total += math.exp(log_sum(held) - self.log_z) * self._stand_in()
        return normalised(total)

    def logp_kept(self) -> NDArray[np.float64]:
        """What greedy and sampling choose from: the report without the stand-in's part."""
        opened, _ = self._open()
        return normalised(self._mixed([*self.kept, *opened]))

    def prune(self) -> Self:
        """At most K candidates, always the best, and perhaps the canonical."""
        kept, least = list(self.kept[: self.params.K]), self.log_z + self.params.log_prune_threshold
        if not self.params.deferred:
            kept = [c for c in kept if c.weight > least] or kept[:1]
        if self.params.keep_canonical and self.model.canonical is not None:
            kept += [c for c in self.kept if c not in kept and self._is_canonical(c)]
        dropped = log_sum(c.weight for c in self.kept if c not in kept)
        rest = float(np.logaddexp(self.rest, dropped)) if self.params.deferred else -math.inf
        return replace(self, kept=tuple(kept), rest=rest)

    def __lshift__(self, b: int) -> Self:
        """The state after a byte or EOS; EmptyBeam when nothing can go on with it."""
        if self.params.deferred:
            opened, others = self._open()
        else:
            survivors = self._moved(self.kept, b)
            opened, others = self._extensions(survivors, not survivors)
        if b == EOS:
            return self._ended(opened, others)
        after = replace(self, text=self.text + bytes([b]))
        kept = self._moved([*self.kept, *opened], b)
        if self.params.deferred:
            with np.errstate(divide="ignore"):
                q = float(np.log(self._stand_in()[b]))
            items, rest = self._beside(opened)
            since = [(i.path, i.since + bytes([b]), i.weight, i.share + q) for i in items]
            since += [(o.path, bytes([b]), o.weight, o.weight + q) for o in others]
            return after._settled(kept, [Item(*i) for i in since if i[3] > -math.inf], rest + q)
        if not kept:
            raise EmptyBeam(f"nothing continues {self.text!r} with {b}")
        return replace(after, kept=ranked(kept))

    def _beside(self, opened: Sequence[Candidate]) -> tuple[list[Item], float]:
        """Items and remainder; of items that would give the last resort again, it has the share."""
        begun = [i for i in self.items if any(o.path[: len(i.path)] == i.path for o in opened)]
        rest = log_sum([self.rest, *(i.share for i in begun)])
        return [i for i in self.items if i not in begun], rest

    def _settled(self, kept: list[Candidate], items: list[Item], rest: float) -> Self:
        """Evaluates the items whose time has come."""
        total = log_sum([*(c.weight for c in kept), *(i.share for i in items), rest])
        least = total + self.params.log_prune_threshold
        while due := [i for i in items if i.share > least] or (
            [] if kept else sorted(items, key=lambda i: -i.share)[:1]
        ):
            items = [i for i in items if i not in due]
            for item in due:
                mass = self.model.mass(item.path, item.since)
                if mass > 0.0:
                    kept.append(Candidate(item.path, item.since, item.weight + math.log(mass)))
                items += self._ended_since(item)
        kept = kept or self._canonical(whole=False)
        if not kept:
            raise EmptyBeam(f"nothing has any probability after {self.text!r}")
        items.sort(key=lambda i: -i.share)
        rest = log_sum([rest, *(i.share for i in items[LISTED:])])
        rest = min(rest, log_sum(c.weight for c in kept))
        return replace(self, kept=ranked(kept), items=tuple(items[:LISTED]), rest=rest)

    def _ended_since(self, item: Item) -> list[Item]:
        """An item's bytes as a token that ended meanwhile, and the bytes since that one."""
        found = []
        for cut in range(1, len(item.since)):
            since, ended = item.since[cut:], self.text[: len(self.text) - len(item.since) + cut]
            stands = self.model.stand_in.log_of(since, ended)
            for one in self._ending(item.path, item.since[:cut], item.weight):
                found.append(Item(one.path, since, one.weight, one.weight + stands))
        return found

    def _moved(self, candidates: Sequence[Candidate], b: int) -> list[Candidate]:
        found = []
        for c in candidates:
            mass, after = self.model.mass(c.path, c.partial), self._following(c)[b]
            if after > 0.0 and b != EOS:
                weight = c.weight + math.log(after / mass)
                found.append(Candidate(c.path, c.partial + bytes([b]), weight))
        return found

    def _ended(self, opened: Sequence[Candidate], others: Sequence[Candidate]) -> Self:
        """The state after EOS; what was not evaluated is so only if nothing else ends here."""
        kept: list[Candidate] = []
        spare = ranked(others) if self.params.deferred else ()
        for group in ((*self.kept, *opened), *((o,) for o in spare), self._canonical(whole=True)):
            ends = [(c, self._following(c)[EOS]) for c in group]
            kept = [Candidate(c.path, b"", c.weight + math.log(p)) for c, p in ends if p > 0.0]
            if kept or not self.params.deferred:
                break
        if not kept:
            raise EmptyBeam(f"{self.text!r} cannot end here")
        return replace(self, kept=ranked(kept), items=(), rest=-math.inf, terminated=True)

    def _open(self) -> tuple[list[Candidate], list[Candidate]]:
        return self._extensions(self.kept, not self._mixed(self.kept).any())

    def _extensions(
        self, counted: Sequence[Candidate], need_one: bool
    ) -> tuple[list[Candidate], list[Candidate]]:
        """The extensions that weigh enough beside ``counted`` to be evaluated, and the others."""
        found = []
        for c in self.kept:
            if c.partial:
                before = c.weight - math.log(self.model.mass(c.path, c.partial))
                found += self._ending(c.path, c.partial, before)
        log_z = log_sum([*(c.weight for c in counted), *(o.weight for o in found)])
        opened = [o for o in found if o.weight - log_z > self.params.log_prune_threshold]
        if not opened and need_one:
            opened = list(ranked(found)[:1])
            if not opened and self.params.deferred:
                opened = self._canonical(whole=True)
        return opened, [o for o in found if o not in opened]

    def _ending(self, path: Path, partial: bytes, weight: float) -> list[Candidate]:
        """The candidates that a partial makes as a whole token; ``weight`` is that of ``path``."""
        found = [
            Candidate((*path, token), b"", weight + logp)
            for token, logp in self.model.tokens(path, partial)
        ]
        if self.params.tokenizations == "all":
            return found
        assert self.model.canonical is not None
        return [one for one in found if self.model.canonical.begins(one.path)]

    def _canonical(self, whole: bool) -> list[Candidate]:
        """The canonical tokenization of the text, its last token ended or under way."""
        weight, (path, partial) = 0.0, self._spelled(whole)
        for n, token in enumerate(path):
            found = dict(self.model.tokens(path[:n], self.model.vocab.token_bytes[token]))
            weight += found.get(token, -math.inf)
        mass = self.model.mass(path, partial) if weight > -math.inf else 0.0
        return [Candidate(path, partial, weight + math.log(mass))] if mass > 0.0 else []

    def _spelled(self, whole: bool) -> tuple[Path, bytes]:
        """The canonical tokens; where not every byte is a token, of as much as they can spell."""
        vocab, text = self.model.vocab, self.text
        for cut in range(len(text), -1, -1):
            first, last = self.model.below(text[cut:])
            with suppress(VocabError):
                if first < last or cut == len(text):
                    path = tuple(vocab.encode(text[:cut]))
                    if cut < len(text) or whole or not path:
                        return path, text[cut:]
                    return path[:-1], vocab.token_bytes[path[-1]]
            if whole:
                break
        raise EmptyBeam(f"the vocabulary cannot spell {text!r}")

    def _is_canonical(self, c: Candidate) -> bool:
        return (c.path, c.partial) == self._spelled(whole=False)

    def _following(self, c: Candidate) -> NDArray[np.float64]:
        """Probabilities of a partial and one more symbol; EOS only where it may be."""
        total = self.model.following(c.path, c.partial)
        if self.params.tokenizations == "canonical" and not c.partial:
            assert self.model.canonical is not None
            total[EOS] *= self.model.canonical.is_whole(c.path)
        return total

    def _mixed(self, candidates: Sequence[Candidate]) -> NDArray[np.float64]:
        """What follows candidates, weighted, in units of the kept mass."""
        total = np.zeros(SIZE)
        for c in candidates:
            mass = self.model.mass(c.path, c.partial)
            total += math.exp(c.weight - self.log_z) / mass * self._following(c)
        return total

    def _stand_in(self) -> NDArray[np.float64]:
        return self.model.stand_in.after(self.text) * self.model.can_follow(self.text)


def ranked(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The heaviest first; of equals, the one that came first."""
    return tuple(sorted(candidates, key=lambda c: -c.weight))


def log_sum(weights: Iterable[float]) -> float:
    """log(sum(exp(weights))); -inf of nothing."""
    return float(np.logaddexp.reduce(list(weights), initial=-math.inf))


def normalised(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithms of shares; EmptyBeam when there is nothing to share."""
    if not total.any():
        raise EmptyBeam("nothing can follow")
    with np.errstate(divide="ignore"):
        return np.log(total / total.sum())
