"""Mix what a model says after two prompts, as if it were one model.

The states may be of different models with different tokenizers, on different servers or on this
machine: bytes are what they have in common. In a mixture the weights follow the evidence: the
prompt that explains the text better counts more from there on.
"""

import asyncio

import numpy as np

from bytelm import Ensemble
from bytelm_client import AsyncClient, RemoteByteLM

PROMPTS = [b"My favourite fruit is the ", b"My favourite animal is the "]
TEXT = b"banana"


async def main() -> None:
    async with AsyncClient() as client:
        states = [await RemoteByteLM.initial(client, prompt) for prompt in PROMPTS]
        mixture = Ensemble(states, mode="mixture")
        for i in range(len(TEXT) + 1):
            weights = np.exp(mixture.log_weights - np.logaddexp.reduce(mixture.log_weights))
            print(f"{TEXT[:i].decode():8}", *(f"{weight:.3f}" for weight in weights))
            if i < len(TEXT):
                mixture = await (mixture.prune() << TEXT[i])
        print("pool    ", await Ensemble(states, mode="pool").greedy(b"", 12))
        print("product ", await Ensemble(states, mode="product").greedy(b"", 12))
        # States that are still referred to are sessions on the server until they expire.
        for state in [mixture, *states]:
            await state.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
