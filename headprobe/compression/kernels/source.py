"""What kernels are imported from, and whether that works: one that does not must cost nothing but itself."""

from __future__ import annotations

import os
import sysconfig
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from shutil import which
from typing import Any


@dataclass(frozen=True)
class Source:
    """A function that a kernel calls: `package` is what is said to be installed or not; `builder`: module and function
    by which it has C compiled when it is first called, where a release has that (triton does before 3.9)."""

    package: str
    module: str
    function: str
    builder: tuple[str, str] | None = None

    def fault(self) -> str | None:
        """Why it cannot be imported, or called; None where it can. Found out once: every layer asks."""
        return _fault(self)

    def load(self) -> Any:
        """The function itself, imported when it is called: not every machine has the package."""
        return getattr(import_module(self.module), self.function)


# A package may be found and still lack what is called: flash-attn 4 alone makes a `flash_attn` with nothing but `cute`.
FLASH4 = Source("flash_attn.cute", "flash_attn.cute", "flash_attn_varlen_func")
FLASH2 = Source("flash_attn", "flash_attn.flash_attn_interface", "_flash_attn_varlen_forward")
TRITON = Source(
    "triton", "headprobe.compression.kernels.split_programs", "attend_split",
    builder=("triton.backends.nvidia.driver", "compile_module_from_src"),
)  # fmt: skip


@cache
def _fault(source: Source) -> str | None:
    try:
        module = import_module(source.module)
    except ModuleNotFoundError as error:
        return _missing(source, error.name or "")
    except Exception as error:  # whatever a foreign package does when it is imported on a machine that it does not like
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        return f"{source.package} cannot be imported: {reason}"
    if not hasattr(module, source.function):
        return f"{source.module} has no {source.function}"
    builds = source.builder is not None and hasattr(import_module(source.builder[0]), source.builder[1])
    return cannot_build(source.package) if builds else None


def _missing(source: Source, name: str) -> str:
    of_itself = any(f"{whole}.".startswith(f"{name}.") for whole in (source.package, source.module))
    return f"{source.package} is not installed" if of_itself else f"{source.package} cannot be imported: no {name}"


def cannot_build(package: str) -> str | None:
    """Why `package` cannot compile C here, None where it can: as triton looks for a compiler and for Python's header.

    Images for serving often have neither. A header may also lie where the compiler looks by itself.
    """
    named = os.environ.get("CC")
    if not any(map(which, (named,) if named else ("gcc", "clang"))):
        return f"{package} needs a C compiler, and there is no {named or 'gcc or clang'}"
    scheme = sysconfig.get_default_scheme()
    places = sysconfig.get_paths(scheme="posix_prefix" if scheme == "posix_local" else scheme)  # Debian's own has none
    header = Path(places["include"], "Python.h")
    if header.exists() or os.environ.get("CPATH") or os.environ.get("C_INCLUDE_PATH"):
        return None
    return f"{package} compiles C for Python, and there is no {header}"
