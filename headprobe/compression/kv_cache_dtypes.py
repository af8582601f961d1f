"""In which number formats a compressed cache can hold its entries. No torch here: help texts list the names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headprobe.errors import OptionError, shown

AUTO = "auto"  # as the model computes them
BLOCK = 32  # channels of a key or value that share a scale
SCALE_NBYTES = 2  # scales and offsets are bfloat16: they need the range of float32 and hardly any of its digits


@dataclass(frozen=True)
class QuantizedFormat:
    """Whole numbers of `bits` bits with a scale for each block of `BLOCK` channels of an entry's key or value.

    `offset`: whether a block has its least number beside its scale; then codes count from 0, otherwise around 0.
    """

    name: str
    bits: int
    offset: bool

    @property
    def least(self) -> int:
        """The smallest code."""
        return 0 if self.offset else 1 - (1 << self.bits - 1)

    @property
    def largest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1 if self.offset else (1 << self.bits - 1) - 1

    def code_nbytes(self, width: int) -> int:
        """Bytes of the codes of one row of `width` numbers; those of 4 bits share a byte by twos.

        >>> FORMATS["int8"].code_nbytes(64), FORMATS["int4"].code_nbytes(65)
        (64, 33)
        """
        return -(-width * self.bits // 8)

    def scale_nbytes(self, width: int) -> int:
        """Bytes of the scales of one row of `width` numbers, and of its offsets where it has them.

        >>> FORMATS["int8"].scale_nbytes(64), FORMATS["int4"].scale_nbytes(65)
        (4, 12)
        """
        return -(-width // BLOCK) * (1 + self.offset) * SCALE_NBYTES

    def row_nbytes(self, width: int) -> int:
        """Bytes of one row of `width` numbers: codes and scales."""
        return self.code_nbytes(width) + self.scale_nbytes(width)


# int8 counts around 0, 127 steps to each side. With 4 bits an offset pays: on keys of the bundled model and of
# SmolLM2-135M it brings the error from 12.5 and 15.1 % of their norm down to 9.7 and 10.0 %, for half a bit.
FORMATS = {
    quantized.name: quantized
    for quantized in (QuantizedFormat("int8", 8, offset=False), QuantizedFormat("int4", 4, offset=True))
}
KV_CACHE_DTYPES = (AUTO, *FORMATS)


def check_kv_cache_dtype(name: str) -> None:
    """Raise `OptionError` for a name that is not in `KV_CACHE_DTYPES`."""
    if name not in KV_CACHE_DTYPES:
        raise OptionError(f"kv_cache_dtype is {shown(name)}, need one of {', '.join(KV_CACHE_DTYPES)}")


def parse_kv_cache_dtypes(text: str) -> tuple[str, ...]:
    """Names from text such as `auto,int8`, each once. Raises `OptionError` for an unknown one.

    >>> parse_kv_cache_dtypes("auto, int8")
    ('auto', 'int8')
    """
    names = [name.strip() for name in text.split(",")]
    check_kv_cache_dtypes(names)
    return tuple(dict.fromkeys(names))


def check_kv_cache_dtypes(names: Sequence[str]) -> None:
    """Raise `OptionError` for no name, or for one that is not in `KV_CACHE_DTYPES`."""
    if not names:
        raise OptionError(f"no kv_cache_dtype is given, need at least one of {', '.join(KV_CACHE_DTYPES)}")
    for name in names:
        check_kv_cache_dtype(name)


def told_with(name: str, kv_cache_dtype: str) -> str:
    """What a policy on a cache of such entries is called: `snapkv`, `snapkv int8`."""
    return name if kv_cache_dtype == AUTO else f"{name} {kv_cache_dtype}"
