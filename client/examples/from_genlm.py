"""Code written for genlm-bytes, moved here.

With genlm-bytes the example's first lines were::

    from genlm.backend import load_model_by_name
    from genlm.bytes import ByteBeamState, BeamParams

    llm = load_model_by_name("gpt2-medium")

All after them is as it was. The model is the server's, the beam runs here: only rows of tokens go
over the wire. Then the same with the beam on the server, too, where a whole text is one call.
"""

import asyncio

from bytelm import BeamParams, ByteBeamState
from bytelm_client import RemoteByteLM, RemoteTokenLM


async def main() -> None:
    llm = await RemoteTokenLM.start()

    beam = await ByteBeamState.initial(llm, BeamParams(K=5))
    beam = await beam.prefill(b"An apple a day keeps the ")
    logp = await beam.logp_next()
    print(logp.pretty().top(5))
    print(await beam.greedy(b"", steps=12))
    await llm.aclose()

    # What genlm-bytes does by default; the server's own defaults are faster.
    async with await RemoteByteLM.initial(beam=BeamParams(K=5), prefill="exact") as remote:
        remote = await remote.prefill(b"An apple a day keeps the ")
        logp = await remote.logp_next()
        print(logp.pretty().top(5))
        print(await remote.greedy(b"", steps=12))


if __name__ == "__main__":
    asyncio.run(main())
