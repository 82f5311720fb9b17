"""A real server process over a StubLM with a toy vocabulary, small enough for brute force; run with
the port and the vocabulary's name as its arguments."""

import sys

from bytelm.models.testing import StubLM
from bytelm.settings import ServerSettings
from bytelm.vocabulary.vocab import ByteVocab
from bytelm_server.app import create_app
from bytelm_server.process import listen, serve, url_of

VOCABULARIES = {
    "one": [b"", b"", b"a", b"b", b"c", b"ab", b"abc", b"ca", b"bca", b"ab"],
    "other": [b"", b"", b"c", b"b", b"a", b"bc", b"cab", b"bb"],
}


def toy(name: str) -> StubLM:
    vocab = ByteVocab.from_bytes(VOCABULARIES[name], bos_token_id=0, eos_token_ids=[1])
    return StubLM(vocab, seed=len(name), max_context_tokens=30)


if __name__ == "__main__":
    settings = ServerSettings(
        port=int(sys.argv[1]),
        keys_file=None,
        session_store="memory",
        max_K=None,
        server_log_level="WARNING",
    )
    sock = listen(settings)
    print(url_of(sock), flush=True)
    sys.exit(serve(create_app(toy(sys.argv[2]), settings), settings, sock, lambda service: None))
