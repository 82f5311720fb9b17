"""Canonical paths on many random texts of every family: none dropped, none without a witness.

A family whose tokenizer changes text is asked for no witness of what is not whole.

``python -m tests.benchmarks.canonical_paths`` takes minutes; ``--texts``, ``--family``: less.
"""

from __future__ import annotations

import argparse
import random
import time

from bytelm.vocabulary.canonical_paths import CanonicalPaths
from tests.unit import canonical_families as families


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=100_000, help="of each family")
    parser.add_argument("--walks", type=int, default=10_000, help="of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--family", choices=families.FAMILIES, action="append")
    args = parser.parse_args()
    for name in args.family or families.FAMILIES:
        vocab = families.family(name)
        exact = CanonicalPaths.of(vocab).change is None
        chance = random.Random(args.seed)
        texts = [families.text(chance) for _ in range(args.texts)]
        start = time.process_time()
        tokens = sum(families.check_text(vocab, text) for text in texts)
        seconds = time.process_time() - start
        admitted = sum(families.check_walk(vocab, chance) for _ in range(args.walks))
        print(
            f"{name}: {len(texts)} texts, {tokens} tokens, {1e6 * seconds / tokens:.0f} µs each,"
            f" encoding included; {args.walks} walks, {admitted} tokens admitted"
            + (" with a witness" if exact else ", judged right where the text ends"),
            flush=True,
        )


if __name__ == "__main__":
    main()
