"""Copies blocks within the KV cache, on whatever device it is.

This module must not know why.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from vllm.utils.torch_utils import async_tensor_h2d

if TYPE_CHECKING:
    from collections.abc import Hashable

    import torch


def stacked(caches: list[torch.Tensor], num_blocks: int) -> list[torch.Tensor]:
    """The caches of all layers as views ``[layers, num_blocks, ...]``, as few as possible.

    Args:
        caches: each begins with the dimension of blocks, or of equal parts of them. Layers that
            share their KV come with the same memory.
        num_blocks: how many blocks there are.
    """
    alike: dict[Hashable, list[torch.Tensor]] = {}
    for cache in {cache.data_ptr(): cache for cache in caches}.values():
        blocks = cache.unflatten(0, (num_blocks, -1))
        memory = blocks.untyped_storage().data_ptr()
        alike.setdefault((memory, blocks.dtype, blocks.shape, blocks.stride()), []).append(blocks)
    views: list[torch.Tensor] = []
    for layers in alike.values():
        layers.sort(key=lambda layer: layer.storage_offset())
        first = layers[0]
        steps = {b.storage_offset() - a.storage_offset() for a, b in pairwise(layers)} or {0}
        if len(steps) == 1:
            shape, strides = (len(layers), *first.shape), (*steps, *first.stride())
            views.append(first.as_strided(shape, strides, first.storage_offset()))
        else:
            views += [layer[None] for layer in layers]
    return views


def copy_in_turn(cache: torch.Tensor, pairs: list[tuple[int, int]]) -> None:
    """Copy blocks within a cache ``[layers, blocks, ...]``; several times as fast on CPU.

    Args:
        cache: changed.
        pairs: blocks from and to. None is read after it was written to, in this order.
    """
    for source, target in pairs:
        cache[:, target].copy_(cache[:, source])


def copy_at_once(cache: torch.Tensor, pairs: list[tuple[int, int]], *, batch: int = 32) -> None:
    """As :func:`copy_in_turn`, in few steps of the device, which is not waited for.

    Args:
        cache: changed.
        pairs: as there.
        batch: how many blocks are held in other memory at a time.
    """
    moves = async_tensor_h2d(pairs, device=cache.device)
    for sources, targets in (part.unbind(dim=1) for part in moves.split(batch)):
        cache[:, targets] = cache[:, sources]
