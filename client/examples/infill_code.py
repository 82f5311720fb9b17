"""Complete code between a beginning and an end that both stop inside a name.

The beginning ends in the middle of a token, which bytes do not mind. Several candidates for the
middle are drawn, and the one after which the given end is likeliest is taken: the model reads left
to right, so it is asked how well the end follows.
"""

from bytelm_client import Client

BEFORE = """\
def mean(numbers):
    total = 0
    for number in numbers:
        total += num"""
AFTER = """
    return total / len(numbers)
"""


def infill(client: Client, before: str, after: str, candidates: int = 8) -> str:
    """The middle, of so many that were drawn, after which the end is likeliest."""
    # A list of contexts gives a list, however many are drawn of each.
    drawn = client.sample([before], 16, n=candidates, stop="\n", seed=1, temperature=0.8)
    middles = sorted({one.bytes for one in drawn})
    # The middle counts, too: what hardly follows the beginning is no completion.
    scores = client.score(before, [middle + after.encode() for middle in middles])
    best = max(range(len(middles)), key=lambda i: scores[i].logprob)
    return middles[best].decode(errors="replace")


def main() -> None:
    with Client() as client:
        middle = infill(client, BEFORE, AFTER)
        print(f"{BEFORE}\033[1m{middle}\033[0m{AFTER}")


if __name__ == "__main__":
    main()
