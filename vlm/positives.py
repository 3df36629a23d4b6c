"""Rows of a batch that are right for each other: those that share a key, such as a concept or a caption.

Sharing a key is not transitive: (a, b), (b, c) and (c, d) are a chain, and the first and the last share nothing.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

NO_KEY = -1  # fills the keys of a row that has fewer than others


def as_groups(keys: Tensor) -> Tensor:
    """Shorten the keys of a whole batch to what they say about it.

    Args:
        keys: (N, G) integers; `NO_KEY` counts for nothing.

    Returns:
        (N,) integers, equal for rows that share a key, where rows share all their common keys or none; else (N, H), the
        keys that several rows have, renumbered, H <= G.
    """
    numbers, place, counts = cast(
        tuple[Tensor, Tensor, Tensor], torch.unique(keys, return_inverse=True, return_counts=True)
    )
    shared = (keys != NO_KEY) & (counts[place] > 1)
    kept = torch.where(shared, place, NO_KEY).sort(dim=1, descending=True).values
    kept = kept[:, : max(1, int(shared.sum(1).max()))]  # (N, H)
    names, group = cast(tuple[Tensor, Tensor], torch.unique(kept, dim=0, return_inverse=True))  # of equal keys
    highest = group.new_full((len(numbers),), -1)
    lowest = group.new_full((len(numbers),), len(names))
    for column in kept.T:
        own = column != NO_KEY
        highest.scatter_reduce_(0, column.clamp(min=0), torch.where(own, group, -1), "amax")
        lowest.scatter_reduce_(0, column.clamp(min=0), torch.where(own, group, len(names)), "amin")
    if bool((highest > lowest).any()):
        return kept
    alone = kept[:, 0] == NO_KEY
    return torch.where(alone, len(names) + torch.arange(len(keys), device=keys.device), group)


@dataclass(frozen=True)
class SameThing:
    """Which of this process's n rows, from `first` on, and of all N rows are right for each other."""

    keys: Tensor  # (N,) groups, or (N, H) keys
    first: int
    count: int  # n

    @classmethod
    def of(cls, groups: Tensor, first: int, count: int) -> "SameThing":
        """The relation that groups (N,) or keys (N, G) of a whole batch say."""
        return cls(groups if groups.ndim == 1 else as_groups(groups), first, count)

    @property
    def transitive(self) -> bool:
        """Whether the relation divides the batch into groups."""
        return self.keys.ndim == 1

    def tile(self, r: slice, c: slice) -> Tensor:
        """(rows, columns) bool: the part of the relation between the own rows `r` and the rows `c` of all."""
        rows, columns = self.keys[self.first : self.first + self.count][r], self.keys[c]
        if self.transitive:
            return rows[:, None] == columns
        found = torch.zeros(len(rows), len(columns), dtype=torch.bool, device=self.keys.device)
        for row_keys in rows.T:
            named = (row_keys != NO_KEY)[:, None]
            for column_keys in columns.T:
                found |= (row_keys[:, None] == column_keys) & named
        found.diagonal(r.start + self.first - c.start).fill_(True)
        return found


def from_group_mean(rows: Tensor, groups: Tensor) -> Tensor:
    """(N, E) minus the mean of each row's group; no shape depends on the number of groups, so no device waits."""
    ordered, order = groups.sort()
    starts = F.pad((ordered[1:] != ordered[:-1]).long(), (1, 0))
    member = torch.empty_like(order).scatter_(0, order, starts.cumsum(0))  # (N,), numbers of the groups from 0
    totals = torch.zeros_like(rows).index_add_(0, member, rows)
    count = rows.new_zeros(len(rows)).index_add_(0, member, rows.new_ones(len(rows)))
    return rows - (totals / count[:, None].clamp(min=1))[member]
