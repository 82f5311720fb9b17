"""Tokenizer families: what each library's tokenizers say about the bytes of their tokens.

`read` turns a tokenizer object of any supported library into one `TokenTable`; `load` opens a
tokenizer file, `load_pretrained` that of a model. Each library is imported only where one of its
tokenizers is read. A family whose bytes cannot be known is refused with the reason. Knows nothing
of tries or beams.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bytelm.errors import UnknownModel, VocabError
from bytelm.vocabulary.families import fast, pieces, ranks
from bytelm.vocabulary.families.table import TokenTable

__all__ = ["TokenTable", "load", "load_pretrained", "lone_file", "read"]


def read(tokenizer: Any) -> TokenTable:
    """The table of a tokenizer object. VocabError when its tokens' bytes cannot be known."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return _with_marks(fast.read(backend), tokenizer)
    library = type(tokenizer).__module__.partition(".")[0]
    if library == "tokenizers":
        return fast.read(tokenizer)
    if library == "tiktoken":
        return ranks.read_tiktoken(tokenizer)
    if hasattr(tokenizer, "id_to_byte_piece"):
        return ranks.read_tekken(tokenizer)
    if hasattr(tokenizer, "serialized_model_proto"):
        return pieces.read(tokenizer)
    if library == "mistral_common" and hasattr(tokenizer, "instruct_tokenizer"):
        return read(tokenizer.instruct_tokenizer.tokenizer)
    if library == "mistral_common" and hasattr(tokenizer, "file_path"):
        return pieces.read(load(Path(tokenizer.file_path)))
    if hasattr(tokenizer, "sp_model") and hasattr(tokenizer, "added_tokens_decoder"):
        return _with_marks(pieces.read_wrapped(tokenizer), tokenizer)
    if type(tokenizer).__name__ == "MistralCommonBackend":
        return read(tokenizer.tokenizer)
    raise VocabError(
        f"a tokenizer of class {type(tokenizer).__qualname__} says nothing about its tokens' bytes:"
        " give one of tokenizers, transformers (fast), sentencepiece, tiktoken or mistral_common"
    )


def _with_marks(table: TokenTable, tokenizer: Any) -> TokenTable:
    """The table with the EOS and BOS of transformers' tokenizer, which may not be its model's."""
    eos = tokenizer.eos_token_id
    table.eos_token_ids = () if eos is None else (eos,)
    table.bos_token_id = tokenizer.bos_token_id
    return table


def lone_file(directory: Path) -> Path | None:
    """The tokenizer file of a directory that has no transformers tokenizer beside it, if any."""
    if not directory.is_dir() or any(directory.glob("tokenizer*.json")):
        return None
    found = [*directory.glob("tekken.json"), *sorted(directory.glob("tokenizer.model*"))]
    return found[0] if found else None


def load(
    path: Path, pattern: str | None = None, special_tokens: Mapping[str, int] | None = None
) -> Any:
    """The tokenizer object in a file.

    A tokenizer.json, a tekken json, a SentencePiece model, or a tiktoken rank file, which needs
    `pattern`. UnknownModel when the file cannot be read, VocabError when it is none of these.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnknownModel(f"no tokenizer file can be read at {str(path)!r}: {error}") from error
    try:
        if data.startswith(b"{"):
            if "model" in json.loads(data):
                from tokenizers import Tokenizer

                return Tokenizer.from_file(str(path))
            from mistral_common.tokens.tokenizers.tekken import Tekkenizer

            return Tekkenizer.from_file(path)
        if data.startswith(b"\n"):
            from sentencepiece import SentencePieceProcessor

            return SentencePieceProcessor(model_file=str(path))
        return ranks.load_tiktoken(path, pattern, special_tokens or {})
    except (VocabError, ImportError):
        raise
    except Exception as error:  # the libraries have no errors of their own for such files
        raise VocabError(
            f"{str(path)!r} is damaged, or no tokenizer.json, tekken json, SentencePiece model or"
            f" tiktoken rank file ({type(error).__name__}: {error})"
        ) from error


def load_pretrained(path: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer object of a model in Hugging Face layout: a directory, or a name on the hub.

    A directory with nothing but a tekken.json or SentencePiece model for a tokenizer is read from
    that, else transformers is needed. UnknownModel when there is no tokenizer, or a damaged one.
    With `trust_remote_code`, code that comes with the model may run.
    """
    try:
        # transformers' own guess at a lone file loses the dummy prefix.
        if file := lone_file(Path(path)):
            return load(file)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except ImportError:
        raise
    except Exception as error:  # damaged files give errors of any kind
        raise UnknownModel(f"no tokenizer can be loaded from {str(path)!r}: {error}") from error
