"""Which tokens a candidate may end with, and which candidates are canonical.

Canonical tokenizations are judged token by token (``bytelm.vocabulary.canonical_paths``), so
candidates carry where they stand: their path is a tuple that knows it.

This module knows paths and vocabularies; it must not know weights.
"""

from __future__ import annotations

from bytelm.beam.deferred import Path
from bytelm.errors import VocabError
from bytelm.vocabulary.canonical_paths import CanonicalPaths, PathState
from bytelm.vocabulary.vocab import ByteVocab


class _Judged(tuple[int, ...]):
    """Tokens, and where they stand among canonical ones; None where they are none."""

    where: PathState | None


def strayed(path: Path) -> Path:
    """The same tokens, known to begin no canonical tokenization."""
    judged = _Judged(path)
    judged.where = None
    return judged


def is_strayed(path: Path) -> bool:
    """Whether tokens are known to begin no canonical tokenization."""
    return isinstance(path, _Judged) and path.where is None


class Judge:
    """Judges the tokens of candidates; ``anchor`` is how many of them are no text.

    Args:
        vocab: the vocabulary.
        strict: admit none but those that can be canonical.

    Raises:
        VocabError: when that is not known for the vocabulary.
    """

    def __init__(self, vocab: ByteVocab, strict: bool) -> None:
        self._paths = CanonicalPaths.of(vocab)
        self._strict = strict

    @staticmethod
    def of(vocab: ByteVocab, tokenizations: str, keep_canonical: bool) -> Judge | None:
        """The judge that a beam needs, if any; kept with the vocabulary.

        Raises:
            VocabError: when ``tokenizations`` is canonical, but it is not known what that is.
        """
        strict = tokenizations == "canonical"
        if not strict and not keep_canonical:
            return None
        judges: dict[bool, Judge | None] = vocab.__dict__.setdefault("_judges", {})
        if strict not in judges:
            try:
                judges[strict] = Judge(vocab, strict)
            except VocabError:
                if strict:
                    raise
                judges[strict] = None
        return judges[strict]

    def judged(self, path: Path, anchor: int) -> Path:
        """The same tokens, which are taken to be canonical, with where they stand."""
        if isinstance(path, _Judged):
            return path
        judged = _Judged(path)
        judged.where = self._behind(path[anchor:])
        return judged

    def _behind(self, tokens: Path) -> PathState | None:
        """Where tokens stand; what lies before a certain place makes no difference."""
        try:
            return self._paths.after(tokens)
        except ValueError:
            # A trunk that was parted at a place that is not certain may be no text's beginning.
            return self._paths.start if self._strict else None

    def extended(self, path: Path, token: int, anchor: int) -> Path | None:
        """``path`` and a token that ended behind it; None if it may not."""
        before = self._where(path, anchor)
        where = None if before is None else before.step(token)
        if where is None and self._strict:
            return None
        extended = _Judged((*path, token))
        extended.where = where
        return extended

    def may_end(self, path: Path, anchor: int) -> bool:
        """Whether the text may end behind these tokens."""
        where = self._where(path, anchor) if self._strict else None
        return not self._strict or (where is not None and where.is_whole)

    def is_canonical(self, path: Path, tokens: list[int], anchor: int) -> bool:
        """Whether a path and one of ``tokens`` are the canonical tokenization of their bytes."""
        before = self._where(path, anchor)
        after = [before.step(token) for token in tokens] if before is not None else []
        return any(where is not None and where.is_whole for where in after)

    def _where(self, path: Path, anchor: int) -> PathState | None:
        judged = self.judged(path, anchor)
        assert isinstance(judged, _Judged)
        return judged.where
