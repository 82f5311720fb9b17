"""What of a model's config decides how much memory and work it takes.

Must not know GPUs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bytelm.errors import InputError

DTYPES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0}
"""Bytes of a weight."""

_UNKNOWN = ("kv_lora_rank", "ssm_cfg", "mamba_d_state", "state_size", "linear_num_key_heads")
"""Fields of models whose cache is not keys and values of all heads."""

_TIED = ("cohere", "ernie4_5", "gemma", "smollm3", "vaultgemma")
"""How the types of models begin whose first and last matrix are one if the config is silent."""


@dataclass(frozen=True)
class ModelShape:
    """A decoder with gated feed-forward layers, as Llama, Mistral, Qwen and Gemma are.

    Attributes:
        name: the model's.
        layers: how many.
        hidden: the width between layers.
        heads: of attention.
        kv_heads: that have keys and values of their own.
        head_dim: the width of one.
        intermediate: the width inside a feed-forward layer, or inside an expert.
        vocab: tokens, padded ones included.
        tied: whether the first and the last matrix are one.
        dtype: of weights, a key of ``DTYPES``.
        longest: tokens of the longest context, if the config says so.
        experts: in each layer; 1 where there are none.
        experts_per_token: how many of them a token goes through.
        read_bytes: size of the weights as they lie on the disk, if they do.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    dtype: str = "bfloat16"
    longest: int | None = None
    experts: int = 1
    experts_per_token: int = 1
    read_bytes: int | None = None

    @property
    def parameters(self) -> int:
        """How many weights there are."""
        return self._parameters(self.experts)

    @property
    def active_parameters(self) -> int:
        """How many weights a token is multiplied with; the first matrix is only looked up in."""
        looked_up = 0 if self.tied else self.vocab * self.hidden
        return self._parameters(self.experts_per_token) - looked_up

    @property
    def weight_bytes(self) -> float:
        """Memory of the weights."""
        if self.read_bytes is not None:
            return float(self.read_bytes)
        return self.parameters * DTYPES[self.dtype]

    @property
    def bytes_read_per_step(self) -> float:
        """What a step of many contexts reads of the weights: all but the first matrix."""
        looked_up = 0 if self.tied else self.vocab * self.hidden
        return self.weight_bytes * (1 - looked_up / self.parameters)

    @property
    def kv_bytes_per_token(self) -> float:
        """Memory of a token's keys and values; in 16 bits where weights have fewer."""
        return 2 * self.layers * self.kv_heads * self.head_dim * max(DTYPES[self.dtype], 2.0)

    def _parameters(self, experts: int) -> int:
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        router = self.hidden * self.experts if self.experts > 1 else 0
        feed_forward = 3 * self.hidden * self.intermediate * experts + router
        layer = attention + feed_forward + 2 * self.hidden
        ends = self.vocab * self.hidden * (1 if self.tied else 2) + self.hidden
        return self.layers * layer + ends


PRESETS = {
    "135m": ModelShape("SmolLM2-135M", 30, 576, 9, 3, 64, 1536, 49152, tied=True, longest=8192),
    "1b": ModelShape("Llama-3.2-1B", 16, 2048, 32, 8, 64, 8192, 128256, tied=True, longest=131072),
    "8b": ModelShape(
        "Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256, tied=False, longest=131072
    ),
    "70b": ModelShape(
        "Llama-3.1-70B", 80, 8192, 64, 8, 128, 28672, 128256, tied=False, longest=131072
    ),
}
"""Models whose published configs are written down here, so that nothing needs to be fetched."""


def shape_of(config: Mapping[str, Any], name: str, dtype: str | None = None) -> ModelShape:
    """A model's shape from its ``config.json``.

    Args:
        config: the config.
        name: the model's name.
        dtype: of the weights, if not as in the config.

    Raises:
        InputError: when the config lacks something, or is of a kind that is not known here.
    """
    text: Mapping[str, Any] = config.get("text_config", config)
    if unknown := [field for field in _UNKNOWN if field in text]:
        raise InputError(
            f"{name}: models with {unknown[0]} keep their contexts in another way than is "
            "computed here"
        )

    def number(*fields: str, default: int | None = None) -> int:
        for field in fields:
            if isinstance(text.get(field), int):
                return int(text[field])
        if default is None:
            raise InputError(f"{name}: the config has no {fields[0]}")
        return default

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    kind = str(text.get("model_type") or config.get("model_type") or "")
    ties = (one["tie_word_embeddings"] for one in (text, config) if "tie_word_embeddings" in one)
    experts = number("num_local_experts", "num_experts", "n_routed_experts", default=1)
    inside = ("moe_intermediate_size",) if experts > 1 else ()
    shape = ModelShape(
        name=name,
        layers=number("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=number("num_key_value_heads", default=heads),
        head_dim=number("head_dim", default=hidden // heads),
        intermediate=number(*inside, "intermediate_size"),
        vocab=number("vocab_size"),
        tied=bool(next(ties, kind.startswith(_TIED))),
        dtype="bfloat16" if dtype else _dtype(config, text, name),
        longest=text.get("max_position_embeddings"),
        experts=experts,
        experts_per_token=number("num_experts_per_tok", default=1) if experts > 1 else 1,
    )
    return of_dtype(shape, dtype) if dtype else shape


def of_dtype(shape: ModelShape, dtype: str) -> ModelShape:
    """A model with weights of another type.

    Raises:
        InputError: when there is no such type.
    """
    if dtype not in DTYPES:
        raise InputError(f"--dtype: {dtype!r} is not known; these are: {', '.join(DTYPES)}")
    return replace(shape, dtype=dtype, read_bytes=None)


def shape_in(folder: Path, dtype: str | None = None, name: str | None = None) -> ModelShape:
    """The shape of a model in a folder, and how large its weights are if they are there.

    Args:
        folder: with ``config.json``, and the weights or not.
        dtype: of the weights, if not as they lie there.
        name: the model's; the folder's by default.

    Raises:
        InputError: see ``shape_of``; when no config can be read, or some of the weights are not
            there.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: no config.json can be read: {error}") from None
    shape = shape_of(config, name or folder.name, dtype)
    # Others are converted when they are loaded.
    if dtype is None and (files := _weight_files(folder)):
        shape = replace(shape, read_bytes=sum(map(_tensor_bytes, files)))
    return shape


def _weight_files(folder: Path) -> list[Path]:
    """The files that the weights are in; none where there are no weights."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.is_file():
        # Beside it may lie the same weights in another layout.
        return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    try:
        names = sorted({*json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{index}: no index of weights can be read: {error}") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing == names:
        return []
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {len(names)} files of weights are missing, among them "
            f"{missing[0]}: download them again, or count without them (--dtype)"
        )
    return [folder / name for name in names]


def _tensor_bytes(file: Path) -> int:
    """What the tensors of a safetensors file take: as its header says, up to its end."""
    rest = file.stat().st_size - 8
    with file.open("rb") as opened:
        start = opened.read(8)
        length = int.from_bytes(start, "little")
        header = opened.read(length) if 0 < length <= rest else b""
    try:
        tensors = [value for name, value in json.loads(header).items() if name != "__metadata__"]
        end = max(tensor["data_offsets"][1] for tensor in tensors)
    except ValueError:
        end = None
    if end != rest - length:
        probably = "a Git LFS pointer" if start == b"version " else "a download that was cut"
        raise InputError(
            f"{file}: not a whole safetensors file, probably {probably}: download it again, or "
            "count without it (--dtype)"
        )
    return rest - length


def _dtype(config: Mapping[str, Any], text: Mapping[str, Any], name: str) -> str:
    quantization = config.get("quantization_config")
    if quantization is not None:
        if quantization.get("quant_method") == "fp8":
            return "fp8"
        raise InputError(
            f"{name}: its weights are quantized ({quantization.get('quant_method')}): say with "
            f"--dtype as what to count them ({', '.join(DTYPES)})"
        )
    said = [c.get(field) for c in (text, config) for field in ("dtype", "torch_dtype")]
    found = next((str(one) for one in said if one), "bfloat16")
    if found not in DTYPES:
        raise InputError(f"{name}: weights of {found} are not known here: give --dtype")
    return found
