"""Tensors in (named) tuples, and what is done to all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree")


def mapped(function: Callable[..., Tensor], tree: Tree, *others: Tree) -> Tree:
    """A tree of what ``function`` gives for each tensor of ``tree``, and its like in ``others``.

    As torch's own ``tree_map``, which is public in none of its forms and takes longer for the
    tensors of a meta-batch than a step of the optimizer.
    """
    if isinstance(tree, Tensor):
        return function(tree, *others)  # type: ignore[return-value]
    parts: Any = zip(tree, *others, strict=True)  # type: ignore[call-overload]
    found = [mapped(function, *part) for part in parts]
    return type(tree)(*found) if hasattr(tree, "_fields") else type(tree)(found)  # type: ignore[call-arg]


def sliced(tree: Tree, start: int, stop: int) -> Tree:
    """Views of rows ``start`` to ``stop`` of every tensor."""
    return mapped(lambda tensor: tensor[start:stop], tree)


def selected(tree: Tree, indices: Tensor) -> Tree:
    """Rows ``indices`` (n,) of every tensor, copied."""
    return mapped(lambda tensor: tensor.index_select(0, indices), tree)


def joined(trees: Sequence[Tree]) -> Tree:
    """Every tensor of the first tree, with the rows of the others behind its own."""
    return mapped(lambda *tensors: torch.cat(tensors), trees[0], *trees[1:])


def length(tree: Any) -> int:
    """Rows of the first tensor."""
    return len(next(_tensors(tree)))


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    else:
        for part in tree:
            yield from _tensors(part)
