"""bytelm against genlm-bytes on the same weights: the same distributions, the same greedy bytes.

Runs in genlm-bytes' venv (``tests.benchmarks.peers`` starts it). Both libraries read the same rows:
those of genlm.backend's transformers model in float32, kept while a prompt lasts. Both walk their
prompts byte by byte, and bytelm reads special tokens literally, as genlm-bytes does.

- At K=8, threshold 0, the pruned beams after each byte of a prompt and the unpruned ones at its
  end must give every next byte whose log-probability is above -10 within 1e-3.
- At K=5, threshold 0.05, 40 greedy bytes must be equal. The comparison stops where a decision of
  genlm-bytes lies within 1e-4 of flipping, since float32 sums in another order may flip it.

A killed run is gone on with, prompt by prompt, as long as the sources stay as they are.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from genlm import bytes as genlm
from genlm.backend import load_model_by_name
from numpy.typing import NDArray

import bytelm
from bytelm.compat.genlm import from_genlm

FLOOR = -10.0
TOLERANCE = 1e-3
UNDECIDED = 1e-4
STEPS = 40

PROMPTS = [
    b"An apple a day keeps the ",
    b"The capital of Fran",
    b"The capital of France is",
    b"Once upon a time, ther",
    b"Dear Sir or Madam,\n\nI am",
    b"It was the best of tim",
    b"I can't believe it's not",
    b"  two leading spaces",
    b"A sentence. Another one. ",
    b"supercalifragil",
    b"QWERTYUIOP",
    b"def add(a, b):\n    return",
    b"for i in range(10):\n\t",
    b"import numpy as n",
    b"if (x == 0) {\n  printf(",
    b"SELECT * FROM users WHE",
    b'{"name": "Ada", "age": ',
    b"</html",
    "今天天气".encode(),
    "你好，世界".encode(),
    "Übergröße für Stra".encode(),
    "Привет, ми".encode(),
    "I ❤ 🍕 and 🍣".encode(),
    "👩‍🚀".encode(),
    b"caf\xc3",
    b"\xe4\xbd",
    b"ab\xe9\xe8cd",
    b"3.14159265",
    b"1, 2, 4, 8, 16, ",
    b"The year 19",
]


class SharedRows:
    """A genlm.backend model that evaluates each context once, for both libraries."""

    def __init__(self, llm: Any) -> None:
        self.tokenizer = llm.tokenizer
        self.byte_vocab = llm.byte_vocab
        self._llm = llm
        self._rows: dict[tuple[int, ...], torch.Tensor] = {}

    async def next_token_logprobs(self, token_ids: Sequence[int]) -> torch.Tensor:
        """The row after ``token_ids``, the same tensor each time."""
        context = tuple(token_ids)
        if context not in self._rows:
            self._rows[context] = await self._llm.next_token_logprobs(list(context))
        return self._rows[context]

    def __len__(self) -> int:
        return len(self._rows)

    def forget(self) -> None:
        """Makes room for the next prompt."""
        self._rows.clear()
        self._llm.clear_cache()


class Comparison:
    """How far two distributions are apart wherever one of them is above the floor."""

    def __init__(self) -> None:
        self.entries = 0
        self.worst = 0.0
        self.worst_at: tuple[int, int] | None = None

    def add(self, place: int, theirs: NDArray[np.float64], ours: NDArray[np.float64]) -> None:
        """Compares the distributions at a place of the prompt."""
        compared = np.flatnonzero(np.maximum(theirs, ours) > FLOOR)
        self.entries += len(compared)
        apart = np.abs(theirs[compared] - ours[compared])
        if apart.max() > self.worst:
            self.worst = float(apart.max())
            self.worst_at = (place, int(compared[apart.argmax()]))


async def compare_distributions(theirs: Any, ours: Any, prompt: bytes) -> dict[str, Any]:
    """The walk over a prompt, both beams compared at every byte; and the prefilled beams."""
    found = Comparison()
    their_state, our_state = theirs, ours
    for place, b in enumerate(prompt):
        their_state, our_state = their_state.prune(), our_state.prune()
        found.add(place, (await their_state.logp_next()).ps, (await our_state.logp_next()).ps)
        their_state, our_state = await (their_state << b), await (our_state << b)
    their_state = await theirs.prefill(prompt)
    our_state = await ours.prefill(prompt, mode="exact")
    found.add(len(prompt), (await their_state.logp_next()).ps, (await our_state.logp_next()).ps)
    return {
        "entries": found.entries,
        "worst": found.worst,
        "worst_at": found.worst_at,
        "log_z": [float(their_state.logZ), our_state.logZ],
        "ok": found.worst <= TOLERANCE,
    }


async def compare_greedy(theirs: Any, ours: Any, prompt: bytes) -> dict[str, Any]:
    """Greedy bytes of both, up to the first decision that could go either way."""
    our_state = await ours.prefill(prompt, mode="exact")
    their_state, closest = theirs, math.inf
    for b in prompt:
        closest = min([closest, *walk_margins(their_state, b)])
        their_state = await (their_state.prune() << b)
    text = bytearray()
    for _ in range(STEPS):
        theirs_next = (await their_state.logp_next()).ps
        our_next = (await our_state.logp_next()).ps
        second, first = np.sort(theirs_next)[-2:]
        b = int(theirs_next.argmax())
        margins = [first - second, *extension_margins(their_state, their_state.logZ)]
        closest = min([closest, *margins, *walk_margins(their_state, b)])
        if closest < UNDECIDED or b != int(our_next.argmax()):
            break
        text.append(b)
        their_state = await (their_state.prune() << b)
        our_state = await (our_state.prune() << b)
    return {
        "equal": len(text),
        "margin": float(closest),
        "text": repr(bytes(text)),
        "ok": len(text) == STEPS or bool(closest < UNDECIDED),
    }


def walk_margins(state: Any, b: int) -> Iterator[float]:
    """How close each decision of ``state.prune() << b`` is to flipping, in log-probability."""
    threshold = state.params.log_prune_threshold
    shares = [candidate.weight - state.logZ for candidate in state]
    yield from (abs(share - threshold) for share in shares)
    kept = [share for share in shares if share > threshold]
    if len(kept) > state.params.K:
        yield kept[state.params.K - 1] - kept[state.params.K]
    pruned = state.prune()
    moved = [after.weight for candidate in pruned if (after := candidate << b)]
    yield from extension_margins(pruned, np.logaddexp.reduce(moved) if moved else -np.inf)


def extension_margins(state: Any, log_z: float) -> Iterator[float]:
    """How close the choice of each extension to evaluate is to flipping."""
    weights = [extension.weight for candidate in state for extension in candidate.extend_all()]
    for weight in weights:
        log_z = np.logaddexp(log_z, weight)
    yield from (abs(weight - log_z - state.params.log_prune_threshold) for weight in weights)


async def compare(llm: SharedRows, prompt: bytes) -> dict[str, Any]:
    """Everything about one prompt."""
    lm = from_genlm(llm)
    began = time.perf_counter()
    row: dict[str, Any] = {"prompt": repr(prompt), "bytes": len(prompt)}
    for name, call, wide in (
        ("distributions", compare_distributions, {"K": 8}),
        ("greedy", compare_greedy, {"K": 5, "prune_threshold": 0.05}),
    ):
        theirs = await genlm.ByteBeamState.initial(llm, genlm.BeamParams(**wide))
        ours = await bytelm.ByteBeamState.initial(
            lm, bytelm.BeamParams(**wide, special_tokens="literal")
        )
        row[name] = await call(theirs, ours, prompt)
        await theirs.cleanup()
    return row | {"evaluations": len(llm), "seconds": time.perf_counter() - began}


def compare_all(model: str, prompts: Sequence[bytes], done: Path) -> list[dict[str, Any]]:
    """The rows of all prompts; those in ``done`` are taken from there, others added to it."""
    known = {}
    if done.is_file():
        known = {row["prompt"]: row for row in map(json.loads, done.read_text().splitlines())}
    options = {"hf_opts": {"torch_dtype": torch.float32, "device_map": "cpu"}, "timeout": 0.001}
    llm: SharedRows | None = None
    for number, prompt in enumerate(prompts, 1):
        row = known.get(repr(prompt))
        if row is None:
            if llm is None:
                llm = SharedRows(load_model_by_name(model, backend="hf", llm_opts=options))
            row = known[repr(prompt)] = asyncio.run(compare(llm, prompt))
            llm.forget()
            with done.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(f"{number:2}/{len(prompts)} {_line(row)}", file=sys.stderr, flush=True)
    return [known[repr(prompt)] for prompt in prompts]


def _line(row: dict[str, Any]) -> str:
    greedy, distributions = row["greedy"], row["distributions"]
    return (
        f"{row['prompt'][:34]:34} {distributions['entries']:5} entries within "
        f"{distributions['worst']:.1e}, {greedy['equal']:2} greedy bytes equal, "
        f"{row['evaluations']} evaluations, {row['seconds']:.0f} s"
        + ("" if distributions["ok"] and greedy["ok"] else "  DIFFERENT")
    )


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = report["prompts"]
    lines = [
        "# bytelm against genlm-bytes: the same numbers",
        "",
        f"genlm-bytes {report['genlm-bytes']} and bytelm on the rows of {report['model']} "
        f"(transformers {report['transformers']}, float32), prompts walked byte by byte, special "
        "tokens read literally.",
        "",
        f"- K=8, threshold 0: {report['entries']} next-byte log-probabilities above {FLOOR:g} at "
        f"every byte of {len(rows)} prompts; the largest difference is {report['worst']:.1e} "
        f"(allowed: {TOLERANCE:g}).",
        f"- K=5, threshold 0.05: {report['greedy_equal']} greedy bytes compared, "
        f"{report['greedy_different']} different; {report['greedy_whole']} of {len(rows)} "
        f"continuations compared over all {STEPS} bytes, the others up to a decision within "
        f"{UNDECIDED:g} of flipping.",
        "",
        "| prompt | bytes | compared | largest difference | greedy bytes equal | closest decision |"
        " greedy continuation |",
        "| --- | --: | --: | --: | --: | --: | --- |",
    ]
    for row in rows:
        at, greedy = row["distributions"], row["greedy"]
        cells = (row["prompt"], greedy["text"])
        prompt, text = (f"`` {cell.replace('|', chr(92) + '|')} ``" for cell in cells)
        lines.append(
            f"| {prompt} | {row['bytes']} | {at['entries']} | {at['worst']:.1e} | "
            f"{greedy['equal']} | {greedy['margin']:.1e} | {text} |"
        )
    lines += ["", f"Evaluations: {report['evaluations']}; {report['minutes']:.1f} minutes.", ""]
    return "\n".join(lines)


def report_on(model: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the rows say together."""
    distributions = [row["distributions"] for row in rows]
    greedy = [row["greedy"] for row in rows]
    return {
        "model": Path(model).name,
        **{name: version(name) for name in ("genlm-bytes", "genlm-backend", "transformers")},
        "entries": sum(d["entries"] for d in distributions),
        "worst": max(d["worst"] for d in distributions),
        "greedy_equal": sum(g["equal"] for g in greedy),
        "greedy_different": sum(not g["ok"] for g in greedy),
        "greedy_whole": sum(g["equal"] == STEPS for g in greedy),
        "evaluations": sum(row["evaluations"] for row in rows),
        "minutes": sum(row["seconds"] for row in rows) / 60,
        "ok": all(d["ok"] for d in distributions) and all(g["ok"] for g in greedy),
        "prompts": rows,
    }


def _sources() -> str:
    """A digest of everything that decides the results, but for the model."""
    files: Iterable[Path] = sorted(Path(bytelm.__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in [*files, Path(__file__)]))
    return digest.hexdigest()[:12]


def main() -> int:
    """Compares, writes the results, and fails where the libraries differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="the model's folder")
    parser.add_argument("--progress", type=Path, required=True, help="where unfinished runs are")
    parser.add_argument("--results", type=Path, required=True, help="where the results go")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="only the first ones")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    given.progress.mkdir(parents=True, exist_ok=True)
    done = given.progress / f"exactness-{Path(given.model).name}-{_sources()}.jsonl"
    rows = compare_all(given.model, PROMPTS[: given.prompts], done)
    report = report_on(given.model, rows)
    if len(rows) == len(PROMPTS):
        given.results.mkdir(parents=True, exist_ok=True)
        (given.results / "peers_exactness.json").write_text(json.dumps(report, indent=1) + "\n")
        (given.results / "peers_exactness.md").write_text(table(report))
    print(table(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
