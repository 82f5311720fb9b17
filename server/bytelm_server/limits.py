"""What this server gives one call at most, and by default.

Must not know HTTP, nor how a call is answered.
"""

import asyncio

from bytelm.beam import BeamParams
from bytelm.context import Context
from bytelm.errors import ContextTooLong
from bytelm.settings import ServerSettings
from bytelm.vocab import ByteVocab
from bytelm_server import requests
from bytelm_server.errors import LimitExceeded


class Limits:
    """Holds calls against the settings; each check raises LimitExceeded, naming the field."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings

    def beam_params(self, beam: requests.Beam) -> BeamParams:
        """The library's parameters, with defaults for what is absent."""
        settings = self.settings
        width = beam.K if "K" in beam.model_fields_set else settings.default_K
        cap = settings.max_K
        if cap is not None and (width is None or width > cap):
            wanted = "unlimited" if width is None else width
            raise LimitExceeded(f"beam.K can be at most {cap} here, not {wanted}", "beam.K")
        threshold = beam.prune_threshold
        return BeamParams(
            K=width,
            prune_threshold=settings.default_prune_threshold if threshold is None else threshold,
            eos_byte_strings=beam.eos_tokens,
            heal=beam.heal,
            heal_max_backoff=beam.heal_max_backoff,
            heal_max_splits=beam.heal_max_splits,
            special_tokens=beam.special_tokens,
        )

    def check_contexts(self, count: int) -> None:
        """How many contexts a call may have."""
        most = self.settings.max_contexts
        if count > most:
            raise LimitExceeded(f"one call takes at most {most} contexts, not {count}", "contexts")

    def check_rows(self, rows: int, width: int) -> None:
        """How many log-probabilities an answer in JSON may have."""
        most = self.settings.max_row_values
        if rows * width > most:
            raise LimitExceeded(
                f"one answer has at most {most} log-probabilities, not {rows} × {width}: ask for "
                "fewer contexts, or for the top ones only",
                "contexts",
            )

    def check_walk(self, length: int) -> None:
        """How many bytes may be followed one by one."""
        most = self.settings.max_walked_bytes
        if length > most:
            raise LimitExceeded(
                f"at most {most} bytes are followed one by one here, not {length}: use prefill fast"
            )

    def check_generation(self, contexts: int, n: int, steps: int) -> None:
        """How much a call may generate."""
        one, texts, total = (
            self.settings.max_steps,
            self.settings.max_results,
            self.settings.max_total_steps,
        )
        if steps > one:
            raise LimitExceeded(f"steps can be at most {one} here, not {steps}", "steps")
        if contexts * n > texts:
            message = f"one call gives at most {texts} results, not {contexts} × {n}"
            raise LimitExceeded(message, "n" if n > 1 else "contexts")
        if contexts * n * steps > total:
            raise LimitExceeded(
                f"one call generates at most {total} bytes in all, not {contexts} × {n} × {steps}",
                "steps",
            )

    def check_scoring(self, lengths: list[int]) -> None:
        """How many continuations a call may score, and how long ones."""
        texts, total = self.settings.max_results, self.settings.max_total_steps
        if len(lengths) > texts:
            message = f"one call scores at most {texts} continuations, not {len(lengths)}"
            raise LimitExceeded(message, "continuations")
        if sum(lengths) > total:
            message = f"one call scores at most {total} bytes in all, not {sum(lengths)}"
            raise LimitExceeded(message, "continuations")

    async def check_context(
        self, context: Context, vocab: ByteVocab, fits: int | None, prefill: str = "fast"
    ) -> None:
        """How long a context may be; ContextTooLong if it is the model that cannot take it."""
        most = self.settings.max_context_bytes
        if context.length > most:
            message = f"a context can have at most {most} bytes here, this one has {context.length}"
            raise LimitExceeded(message)
        if prefill == "exact":
            self.check_walk(context.length)
        specials = len(vocab.initial_context) + len(context.segments)
        if fits is None or context.length + len(vocab.prefix) + specials <= fits:
            return
        # In a thread: a long text takes its time, and other calls theirs.
        tokens = len(await asyncio.to_thread(context.tokens, vocab))
        if tokens > fits:
            message = f"the context has {tokens} tokens, the model takes at most {fits}"
            raise ContextTooLong(message)
