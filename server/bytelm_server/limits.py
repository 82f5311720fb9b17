"""What this server gives one call at most, and by default.

Must not know HTTP, nor how a call is answered.
"""

from typing import Any

from bytelm.beam import BeamParams
from bytelm.prompts.context import Context
from bytelm.settings import ServerSettings
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
            deferred=beam.deferred,
            tokenizations=beam.tokenizations or settings.default_tokenizations,
            keep_canonical=(
                settings.default_keep_canonical
                if beam.keep_canonical is None
                else beam.keep_canonical
            ),
        )

    @property
    def longest_text(self) -> int:
        """The most characters of one text, in base64 too; what is more precise comes later."""
        longest = max(self.settings.max_context_bytes, self.settings.max_total_steps)
        return longest * 4 // 3 + 4

    def check_lists(self, body: Any) -> None:
        """How many items the lists of a body have, before anything is made of them."""
        if not isinstance(body, dict):
            return
        for name, check in {
            "contexts": self.check_contexts,
            "continuations": self.check_continuations,
            "calls": self.check_calls,
        }.items():
            if isinstance(items := body.get(name), list):
                check(len(items))

    def check_calls(self, count: int) -> None:
        """How many calls a batch may have."""
        most = self.settings.max_contexts
        if count > most:
            raise LimitExceeded(f"one batch takes at most {most} calls, not {count}", "calls")

    def check_continuations(self, count: int) -> None:
        """How many continuations a call may score, malformed ones included."""
        most = self.settings.max_results
        if count > most:
            message = f"one call scores at most {most} continuations, not {count}"
            raise LimitExceeded(message, "continuations")

    def check_contexts(self, count: int, name: str = "contexts") -> None:
        """How many contexts a call may have, in a field of this name."""
        most = self.settings.max_contexts
        if count > most:
            raise LimitExceeded(f"one call takes at most {most} contexts, not {count}", name)

    def check_rows(self, rows: int, width: int) -> None:
        """How many log-probabilities an answer in JSON may have."""
        most = self.settings.max_row_values
        if rows * width > most:
            raise LimitExceeded(
                f"one answer has at most {most} log-probabilities, not {rows} × {width}: ask for "
                "fewer contexts, or for the top ones only",
                "contexts",
            )

    def check_values(self, values: int, param: str) -> None:
        """How many log-probabilities or tokens an answer in JSON may have."""
        most = self.settings.max_row_values
        if values > most:
            raise LimitExceeded(
                f"one answer has at most {most} log-probabilities, or tokens of candidates, not "
                f"{values}: ask for less at a time",
                param,
            )

    def check_walk(self, length: int) -> None:
        """How many bytes may be followed one by one."""
        most = self.settings.max_walked_bytes
        if length > most:
            raise LimitExceeded(
                f"at most {most} bytes are followed one by one here, not {length}: use prefill fast"
            )

    def check_generation(
        self, contexts: int, n: int, steps: int, names: tuple[str, str] = ("contexts", "steps")
    ) -> None:
        """How much a call may generate, in the fields that have contexts and steps."""
        of_contexts, of_steps = names
        one, texts, total = (
            self.settings.max_steps,
            self.settings.max_results,
            self.settings.max_total_steps,
        )
        if steps > one:
            raise LimitExceeded(f"{of_steps} can be at most {one} here, not {steps}", of_steps)
        if contexts * n > texts:
            message = f"one call gives at most {texts} results, not {contexts} × {n}"
            raise LimitExceeded(message, "n" if n > 1 else of_contexts)
        if contexts * n * steps > total:
            raise LimitExceeded(
                f"one call generates at most {total} bytes in all, not {contexts} × {n} × {steps}",
                of_steps,
            )

    def most_steps(self, n: int, values: int = 0) -> int:
        """The most bytes of each of ``n`` texts, each with so many log-probabilities told."""
        settings = self.settings
        most = min(settings.max_steps, settings.max_total_steps // n)
        if values:
            most = min(most, settings.max_row_values // (n * values))
        return max(most, 1)

    def check_echo(self, length: int, n: int) -> None:
        """How many bytes of prompts an answer may repeat, ``n`` times each."""
        most = self.settings.max_total_steps
        if length * n > most:
            raise LimitExceeded(
                f"one answer repeats at most {most} bytes of prompts, not {length} × {n}: leave "
                "echo out, or ask for less at a time",
                "echo" if n > 1 else "prompt",
            )

    def check_scoring(self, lengths: list[int], name: str = "continuations") -> None:
        """How many bytes a call may score, in a field of this name."""
        total = self.settings.max_total_steps
        if sum(lengths) > total:
            message = f"one call scores at most {total} bytes in all, not {sum(lengths)}"
            raise LimitExceeded(message, name)

    def check_told(self, length: int) -> None:
        """How many bytes the spans of an answer may have."""
        most = self.settings.max_total_steps
        if length > most:
            raise LimitExceeded(f"spans have at most {most} bytes in all, not {length}", "spans")

    def check_context(self, context: Context, prefill: str = "fast") -> None:
        """How long a context may be, whatever model there is."""
        most = self.settings.max_context_bytes
        if context.length > most:
            message = f"a context can have at most {most} bytes here, this one has {context.length}"
            raise LimitExceeded(message)
        if prefill == "exact":
            self.check_walk(context.length)
