"""Samples of unequal length as one padded batch: where each sample's rows lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass
class Layout:
    """Where the rows of each sample lie in a padded batch of `length` columns.

    `columns` [rows of the sample] are ascending column indices; None stands for all of 0..length-1.
    """

    length: int
    columns: list[torch.Tensor | None]
    pad_right: bool = False
    _mask: torch.Tensor | None = None

    @property
    def padded(self) -> bool:
        """Whether any sample is shorter than the batch."""
        return any(columns is not None for columns in self.columns)

    def to(self, device: torch.device) -> Layout:
        """The same layout with its columns on `device`."""
        return Layout(self.length, [None if kept is None else kept.to(device) for kept in self.columns], self.pad_right)

    def count(self, sample: int) -> int:
        columns = self.columns[sample]
        return self.length if columns is None else len(columns)

    def take(self, states: torch.Tensor, sample: int) -> torch.Tensor:
        """The rows of one sample, from `states` [batch or 1, length, ...]: a view where there is no padding."""
        row = states[sample if len(states) > 1 else 0]
        columns = self.columns[sample]
        return row if columns is None else row[columns]

    def mask(self, device: torch.device) -> torch.Tensor:
        """Which columns hold tokens, bool [batch, length]; made once, for decoding asks at every step."""
        if self._mask is None or self._mask.device != device:
            self._mask = torch.zeros(len(self.columns), self.length, dtype=torch.bool, device=device)
            for sample, columns in enumerate(self.columns):
                self._mask[sample, slice(None) if columns is None else columns.to(device)] = True
        return self._mask

    @classmethod
    def from_mask(cls, mask: torch.Tensor | None, batch: int, length: int, device: torch.device) -> Layout:
        """The layout an attention mask [batch, length] on the CPU describes; None means no padding. Columns go to `device`."""
        if mask is None or bool(mask.all()):
            return cls(length, [None] * batch)
        columns = [row.nonzero()[:, 0].to(device) for row in mask.bool()]
        pad_right = bool(mask[:, 0].all())
        return cls(length, [None if len(kept) == length else kept for kept in columns], pad_right)

    @classmethod
    def of_counts(cls, counts: Sequence[int], pad_right: bool, device: torch.device) -> Layout:
        """The layout of samples with `counts` rows, padded to the longest on one side."""
        length = max(counts)
        columns: list[torch.Tensor | None] = []
        for count in counts:
            first = 0 if pad_right else length - count
            columns.append(None if count == length else torch.arange(first, first + count, device=device))
        return cls(length, columns, pad_right)

    def pad(self, rows: Sequence[torch.Tensor]) -> torch.Tensor:
        """Put each sample's rows [rows, ...] into a batch [batch, length, ...]; padding is zero."""
        if not self.padded:
            return rows[0][None] if len(rows) == 1 else torch.stack(list(rows))
        batch = rows[0].new_zeros(len(rows), self.length, *rows[0].shape[1:])
        for sample, values in enumerate(rows):
            columns = self.columns[sample]
            batch[sample, slice(None) if columns is None else columns] = values
        return batch
