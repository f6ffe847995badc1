"""Map, slice and join trees of tensors: (named) tuples, nested, and parameters by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree")


def tree_map(function: Callable[..., Tensor], tree: Tree, *others: Tree) -> Tree:
    """Return a tree of ``function``'s results for the corresponding tensors of all trees.

    PyTorch's own ``tree_map`` is private in all its forms, and takes longer for the tensors of a
    meta-batch than a step of the optimizer.
    """
    if isinstance(tree, Tensor):
        return function(tree, *others)  # type: ignore[return-value]
    parts: Any = zip(tree, *others, strict=True)  # type: ignore[call-overload]
    mapped = [tree_map(function, *part) for part in parts]
    return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)  # type: ignore[call-arg]


def slice_rows(tree: Tree, start: int, stop: int) -> Tree:
    """Return views of rows ``start`` to ``stop`` of every tensor."""
    return tree_map(lambda tensor: tensor[start:stop], tree)


def select_rows(tree: Tree, indices: Tensor) -> Tree:
    """Return rows ``indices`` (n,) of every tensor, copied."""
    return tree_map(lambda tensor: tensor.index_select(0, indices), tree)


def concat(trees: Sequence[Tree]) -> Tree:
    """Concatenate trees along the first axis of their tensors."""
    if len(trees) == 1:
        return trees[0]
    return tree_map(lambda *tensors: torch.cat(tensors), trees[0], *trees[1:])


def num_rows(tree: Any) -> int:
    """Return the number of rows of the first tensor."""
    return len(next(_tensors(tree)))


def ravel(tensors: Iterable[Tensor]) -> Tensor:
    """Return all numbers of tensors in one vector (P,)."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unravel(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split a vector (P,) into tensors of the names and shapes of ``like``: views."""
    parts = vector.split([value.numel() for value in like.values()])
    return {
        name: part.view(value.shape)
        for (name, value), part in zip(like.items(), parts, strict=True)
    }


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    else:
        for part in tree:
            yield from _tensors(part)
