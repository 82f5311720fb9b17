"""Models that take next to nothing, made on the spot: one random layer on a real tokenizer.

What an engine takes of the host shows best where the model's own time is taken out. This module
must not know what is measured.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH = 64
SHORT = 4
"""The longest token that a sharpened model speaks in: greedy then takes about 0.3 evaluations a
byte, as it does on text that makes sense."""


@dataclass(frozen=True)
class Tiny:
    """What a model is like.

    Attributes:
        name: what the results call it.
        spread: standard deviation of its logits.
        speaks: the longest of its tokens that it speaks in, in bytes; None for all.
        ids: how wide its vocabulary is made, by merging tokens at random; None leaves it as it is.
    """

    name: str
    spread: float = 2.0
    speaks: int | None = None
    ids: int | None = None

    def make(self, source: Path, target: Path) -> Path:
        """Writes the model into a new folder, with the tokenizer of the one in ``source``."""
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        target.mkdir(parents=True)
        for file in source.iterdir():
            if file.suffix == ".json" and file.name != "config.json":
                shutil.copy(file, target)
        tokenizer = json.loads((source / "tokenizer.json").read_text())
        config = json.loads((source / "config.json").read_text())
        if self.ids is not None:
            widen(tokenizer["model"], self.ids)
            (target / "tokenizer.json").write_text(json.dumps(tokenizer))
        sizes = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                **sizes,
                vocab_size=self.ids or config["vocab_size"],
                num_hidden_layers=1,
                hidden_size=WIDTH,
                intermediate_size=WIDTH,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=32,
                max_position_embeddings=4096,
                tie_word_embeddings=False,
            )
        )
        with torch.no_grad():
            # What comes in has been scaled to a mean square of 1.
            weight = model.lm_head.weight.normal_(0.0, self.spread / WIDTH**0.5)
            if self.speaks is not None:
                weight[longer(tokenizer["model"]["vocab"], self.speaks)] = 0.0
        model.save_pretrained(target)
        return target


def widen(model: dict[str, Any], ids: int) -> None:
    """Adds tokens to a byte-pair model until it has so many ids: two that it has, merged."""
    draw = random.Random(0)
    vocab, merges = model["vocab"], model["merges"]
    parts = list(vocab)
    for token in range(max(vocab.values()) + 1, ids):
        while (pair := draw.choices(parts, k=2)) and (merged := "".join(pair)) in vocab:
            pass
        vocab[merged] = token
        merges.append(pair if isinstance(merges[0], list) else " ".join(pair))


def longer(vocab: dict[str, int], most: int) -> list[int]:
    """The ids of tokens of more than so many bytes, each of which is a character there."""
    return [token for text, token in vocab.items() if len(text) > most]
