"""How small a text gets with the model as its statistics, beside zlib and lzma.

An arithmetic coder needs as many bits for a text as the model gives it: the negative base-2
logarithm of its probability, and at most two more. A score tells that without coding anything.
"""

import lzma
import math
import zlib

from bytelm_client import Client

TEXT = b"""\
The quick brown fox jumps over the lazy dog. The five boxing wizards jump quickly, and a large fawn
jumped quickly over white zinc boxes. All of these sentences have every letter of the alphabet.
"""


def main() -> None:
    with Client() as client:
        # A low threshold, so that no byte of the text is without probability.
        score = client.score("", TEXT, eos=True, beam={"K": 10, "prune_threshold": 1e-6})
    bits = -score.logprob / math.log(2)
    print(f"as it is {len(TEXT):6} bytes")
    print(f"zlib     {len(zlib.compress(TEXT, 9)):6} bytes")
    print(f"lzma     {len(lzma.compress(TEXT, preset=9)):6} bytes")
    print(f"model    {math.ceil((bits + 2) / 8):6} bytes, {score.bits_per_byte:.3f} bits per byte")


if __name__ == "__main__":
    main()
