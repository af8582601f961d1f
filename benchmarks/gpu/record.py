"""The results as they come: JSON, written anew after each, a Markdown table beside it."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.gpu.targets import TARGETS
from headprobe.scores.files import write_atomically

SCHEMA = "headprobe-gpu-benchmark/1"


class Record:
    """What a run has found so far. `counts`: whether it is a measurement of the targets, on a GPU in full size."""

    def __init__(self, folder: Path, device: str, shape: str, *, counts: bool) -> None:
        self.json_file, self.table_file = folder / f"gpu-{device}.json", folder / f"gpu-{device}.md"
        self.device, self.shape, self.counts = device, shape, counts
        self.parts: dict[str, dict[str, Any]] = {}
        self.values: dict[str, float] = {}

    def reload(self) -> None:
        """Take over what the file holds, which another process may have written."""
        found = json.loads(self.json_file.read_text(encoding="utf-8"))
        self.parts = found["parts"]
        self.values = {row["name"]: row["value"] for row in found["targets"] if row["value"] is not None}

    def begin(self, part: str) -> None:
        """A part begins; what is known of it from an earlier run goes."""
        self.parts[part] = {"status": "running", "date": date.today().isoformat(), "results": {}}

    def note(self, part: str, name: str, found: Any) -> None:
        """Keep a result of a part."""
        self.parts.setdefault(part, {"status": "running", "results": {}})["results"][name] = found
        self.write()

    def end(self, part: str, status: str, **more: Any) -> None:
        """A part is `done`, `failed` or `skipped`."""
        self.parts.setdefault(part, {"results": {}}).update(status=status, **more)
        self.write()

    def target(self, name: str, value: float) -> None:
        """The value that was measured for a target."""
        assert any(target.name == name for target in TARGETS), name
        self.values[name] = round(value, 4)

    @property
    def targets(self) -> list[dict[str, Any]]:
        """All targets, also those without a value."""
        return [target.verdict(self.values.get(target.name), self.counts) for target in TARGETS]

    def write(self) -> None:
        """Replace both files."""
        found = {"schema": SCHEMA, "shape": self.shape, "device": self.device, "is_measurement": self.counts,
                 "targets": self.targets, "parts": self.parts}  # fmt: skip
        write_atomically(self.json_file, (json.dumps(found, indent=2) + "\n").encode(), overwrite=True)
        write_atomically(self.table_file, self.table().encode(), overwrite=True)

    def table(self) -> str:
        """Targets, then parts, as Markdown."""
        lines = [f"# GPU benchmark, {self.shape} on {self.device}", ""]
        if not self.counts:
            lines += ["A trial run: it shows that the parts run, and says nothing about a GPU.", ""]
        lines += ["| target | what | limit | value | met |", "|---|---|---|---|---|"]
        for row in self.targets:
            value = "not measured" if row["value"] is None else f"{row['value']:.3f}"
            met = {True: "yes", False: "**no**", None: "-"}[row["met"]]
            lines.append(f"| {row['target']} | {row['what']} | {row['limit']} | {value} | {met} |")
        lines += ["", "| part | status | seconds | remark |", "|---|---|---|---|"]
        for name, part in self.parts.items():
            remark = str(part.get("error", part.get("reason", ""))).replace("|", "/")
            lines.append(f"| {name} | {part['status']} | {part.get('seconds', '')} | {remark} |")
        return "\n".join(lines) + "\n"


def say(*words: Any) -> None:
    """Progress, on stderr."""
    print(*words, file=sys.stderr, flush=True)
