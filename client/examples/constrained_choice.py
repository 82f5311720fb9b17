"""Let the model choose among given answers, byte by byte.

Each answer is a path of bytes. At every step only the bytes that continue some answer are allowed,
so that the model's choice is always one of them, wherever its tokens begin and end. Scoring says
how likely each answer is as a whole.
"""

import math

from bytelm_client import Client

PROMPT = "The capital of Italy is the city of "
ANSWERS = ["Paris.", "Rome.", "Romania.", "Madrid.", "Milan."]


def choose(client: Client, prompt: str, answers: list[str]) -> str:
    """The answer that is likeliest step by step."""
    left = [answer.encode() for answer in answers]
    chosen = b""
    with client.session(prompt) as session:
        while chosen not in left:
            allowed = sorted({answer[len(chosen)] for answer in left})
            if len(allowed) > 1:
                logprobs = session.next().logprobs
                best = max(allowed, key=lambda b: logprobs[b])
            else:
                best = allowed[0]
            chosen += bytes([best])
            left = [answer for answer in left if answer.startswith(chosen)]
            session.advance(bytes([best]))
    return chosen.decode()


def main() -> None:
    with Client() as client:
        print(f"{PROMPT}{choose(client, PROMPT, ANSWERS)}")
        scores = client.score(PROMPT, ANSWERS)
        best = max(score.logprob for score in scores)
        weights = [math.exp(score.logprob - best) for score in scores]
        for answer, weight in zip(ANSWERS, weights, strict=True):
            print(f"{weight / sum(weights):8.4f}  {answer}")


if __name__ == "__main__":
    main()
