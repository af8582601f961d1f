"""The split kernel's programs compiled for an H200, no GPU needed: prints shared memory and spilled bytes of each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from headprobe.compression.kernels import split_programs as programs

BYTES = {"query": "*bf16", "keys": "*bf16", "values": "*bf16", "output": "*bf16", "scaling": "fp32", "softcap": "fp32"}
INDICES = ("start", "length", "segment_of", "number_of", "first_split")
COUNTS = ("rows", "count", "ahead", "entries", "group", "groups")
SIZES = {
    "split_size": 256, "tile": 64, "row_block": 16, "block": 16, "key_width": 128, "value_width": 128, "key_pad": 128,
    "value_pad": 128, "capped": True, "biased": True, "weighed": True, "sunk": True, "precision": "tf32",
}  # fmt: skip


def about(program: Any, folder: Path) -> dict[str, int]:
    """Shared memory, and bytes of registers that had to be spilled."""
    kinds = {name: _kind(name) for name in program.arg_names}
    fixed = {(place,): SIZES[name] for place, name in enumerate(program.arg_names) if name in SIZES}
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(kinds.values()) if kind[0] == "*"}
    source = ASTSource(fn=program, signature=kinds, constexprs=fixed, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 2})
    return {"shared": made.metadata.shared, "spilled": _spilled(made.asm["ptx"], folder / program.__name__)}


def _kind(name: str) -> str:
    if name in SIZES:
        return "constexpr"
    return BYTES.get(name) or ("*i32" if name in INDICES else "i32" if name in COUNTS else "*fp32")


def _spilled(ptx: str, file: Path) -> int:
    file.write_text(ptx)
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    command = [ptxas, "-v", "--gpu-name", "sm_90a", file, "-o", file.with_suffix(".cubin")]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stderr.replace(",", "").split()
    return int(words[words.index("spill") - 2])


if __name__ == "__main__":
    folder = Path(triton.knobs.cache.dir)
    folder.mkdir(parents=True, exist_ok=True)
    three = (programs.attend_split, programs.join_splits, programs.weigh_split)
    json.dump({program.__name__: about(program, folder) for program in three}, sys.stdout)
