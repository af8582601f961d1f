"""What kernels are imported from, and whether that works: one that does not must cost nothing but itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Source:
    """A function that a kernel calls: `package` is what is said to be installed or not."""

    package: str
    module: str
    function: str

    def fault(self) -> str | None:
        """Why it cannot be imported, None where it can; found out once."""
        return _fault(self)

    def load(self) -> Any:
        """The function itself, imported when it is called: not every machine has the package."""
        return getattr(import_module(self.module), self.function)


# A package may be found and still lack what is called: flash-attn 4 alone makes a `flash_attn` with nothing but `cute`.
FLASH4 = Source("flash_attn.cute", "flash_attn.cute", "flash_attn_varlen_func")
FLASH2 = Source("flash_attn", "flash_attn.flash_attn_interface", "_flash_attn_varlen_forward")
TRITON = Source("triton", "headprobe.compression.kernels.split_programs", "attend_chunk")


@cache
def _fault(source: Source) -> str | None:
    try:
        module = import_module(source.module)
    except ModuleNotFoundError as error:
        return _missing(source, error.name or "")
    except Exception as error:  # whatever a foreign package does when it is imported on a machine that it does not like
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        return f"{source.package} cannot be imported: {reason}"
    return None if hasattr(module, source.function) else f"{source.module} has no {source.function}"


def _missing(source: Source, name: str) -> str:
    of_itself = any(f"{whole}.".startswith(f"{name}.") for whole in (source.package, source.module))
    return f"{source.package} is not installed" if of_itself else f"{source.package} cannot be imported: no {name}"
