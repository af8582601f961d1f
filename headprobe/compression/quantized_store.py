"""A ragged store whose entries are held as int8 or int4 with scales."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from headprobe.compression.budgets import Ints
from headprobe.compression.kv_cache_dtypes import FORMATS
from headprobe.compression.quantized_rows import QuantizedRows
from headprobe.compression.ragged_store import RaggedStore, Segment


class QuantizedStore(RaggedStore):
    """A store of `kv_cache_dtype` int8 or int4: `key_rows` and `value_rows` stand for `keys` and `values`.

    Each key and each value has scales of its own, one for each block of 32 channels. So an entry is quantized once,
    when it comes, whatever stands beside it: appending, evicting in place, laying out anew and joining move codes and
    scales as they are, and every entry always reads as the same numbers. Nothing holds all of them as plain numbers:
    kernels read a segment, or a sequence, at a time.
    """

    def __init__(
        self, segments: Sequence[Segment], batch: int, capacities: Sequence[int] | Ints, slack: int, kv_cache_dtype: str
    ) -> None:
        self.kv_cache_dtype = kv_cache_dtype
        super().__init__(segments, batch, capacities, slack)

    def _begin(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        quantized = FORMATS[self.kv_cache_dtype]
        self.key_rows = QuantizedRows.zeros(0, keys, quantized)
        self.value_rows = QuantizedRows.zeros(0, values, quantized)

    def _make_tables(self, total: int) -> None:
        self.key_rows, self.value_rows = self.key_rows.zeros_like(total), self.value_rows.zeros_like(total)

    def _write(self, where: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.key_rows.write(where, keys)
        self.value_rows.write(where, values)

    @property
    def tables(self) -> tuple[torch.Tensor, ...]:
        """Codes and scales of keys, codes and scales of values, each `[total, ...]`."""
        return *self.key_rows.tables, *self.value_rows.tables

    def read(self, where: slice | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[k, d]` that the entries `where` stand for."""
        return self.key_rows.read(where), self.value_rows.read(where)

    def read_values(self, where: slice | torch.Tensor) -> torch.Tensor:
        """Values `[k, d_v]` that the entries `where` stand for."""
        return self.value_rows.read(where)

    def pieces(self) -> tuple[Iterable[torch.Tensor], Iterable[torch.Tensor]]:
        """Keys and values in use, `[length, d]` for each segment, read when they are asked for."""
        places = list(zip(self.starts.tolist(), (self.starts + self.lengths).tolist(), strict=True))
        return (self.key_rows.read(slice(*at)) for at in places), (self.value_rows.read(slice(*at)) for at in places)

    @property
    def dtype(self) -> torch.dtype:
        """The type in which entries come and are read."""
        return self.key_rows.dtype

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.key_rows.codes.device

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of a key and of a value."""
        return self.key_rows.width, self.value_rows.width

    @property
    def entry_nbytes(self) -> int:
        """Bytes that one entry takes: codes and scales of its key and its value."""
        return sum(table.shape[1] * table.element_size() for table in self.tables)

    @property
    def scale_nbytes(self) -> int:
        """Bytes of `nbytes` that are scales and offsets."""
        return self.key_rows.scales.nbytes + self.value_rows.scales.nbytes


def store_of(
    segments: Sequence[Segment], batch: int, capacities: Sequence[int] | Ints, slack: int, kv_cache_dtype: str
) -> RaggedStore:
    """The store that holds `segments` in this number format."""
    if kv_cache_dtype in FORMATS:
        return QuantizedStore(segments, batch, capacities, slack, kv_cache_dtype)
    return RaggedStore(segments, batch, capacities, slack)
