from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256

import numpy as np
import pytest

from headprobe.geometry import ModelGeometry
from headprobe.scores.head_scores import HeadScores, Method, Trial
from headprobe.scores.provenance import ModelIdentity, Provenance, TokenizerIdentity
from headprobe.scores.score_file import score_file_bytes


def build_scores(tables: list, passed: list[bool], kv_heads: int | None = None, **changes: object) -> HeadScores:
    """Scores of one trial a table; trial i has length 256 or 512 in turn and depth 0, 0, 50, 50, 100, 100, ..."""
    layers, heads = np.shape(tables[0])
    geometry = ModelGeometry(layers, heads, kv_heads or heads, 16, ("full_attention",) * layers)
    trials = tuple(
        Trial(
            id=f"n{i}@{256 * (1 + i % 2)}@{i // 2 * 50}",
            needle=f"n{i}",
            length=256 * (1 + i % 2),
            depth=float(i // 2 * 50),
            passed=passed[i],
            f1=1.0 if passed[i] else 0.25,
            response=f'Lena\'s Blume — «{i}» \u2028\n\t\\ "q" 花',
            num_steps=7,
            scores=np.array(table, dtype=float),
        )
        for i, table in enumerate(tables)
    )
    provenance = Provenance(
        model=ModelIdentity("toy", None, "c" * 64, "ToyForCausalLM", "float32", "sdpa"),
        tokenizer=TokenizerIdentity("toy", "d" * 64, None),
        probes={
            "needles": {"name": "reasoning", "sha256": "a" * 64},
            "haystack": {"name": "essays", "sha256": "b" * 64, "repeats": 0.5},
            "lengths": (256, 512),
            "depths": (0.0, 50.0, 100.0),
            "template": "Text: {context}",
            "seed": 0,
            "digest": "e" * 64,
        },
        environment={"headprobe": "0.1.0"},
        created_at="2025-01-31T12:00:00Z",
    )
    method = Method("r2", "mass on the answer", 1, {"gate": {"name": "token_f1", "threshold": 0.5}})
    whole = {"geometry": geometry, "method": method, "trials": trials, "provenance": provenance} | changes
    return HeadScores(**whole)  # type: ignore[arg-type]


@pytest.fixture
def make_scores() -> Callable[..., HeadScores]:
    return build_scores


@pytest.fixture
def toy_scores() -> HeadScores:
    """2 x 4 heads, 2 KV heads, 3 passing trials and a failing one."""
    tables = [
        [[0.0, 0.2, 0.4, 0.0], [0.9, 0.0, 0.0, 0.1]],
        [[0.0, 0.4, 0.4, 0.0], [0.6, 0.0, 0.0, 0.1]],
        [[9.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]],
        [[0.0, 0.6, 0.4, 0.0], [0.6, 0.0, 0.3, 0.1]],
    ]
    return build_scores(tables, [True, True, False, True], kv_heads=2)


@pytest.fixture(scope="session")
def sample():
    geometry = ModelGeometry(1, 2, 1, 8, ("full_attention",))
    trials = (Trial("a@64@0", "a", 64, 0.0, True, 1.0, "The answer é.", 3, np.array([[0.25, 1.0]])),)
    provenance = Provenance(ModelIdentity("toy"), None, {"lengths": [64]}, {"os": "x"}, "2025-01-31T12:00:00Z")
    return score_file_bytes(HeadScores(geometry, Method("r2", "f", 1, {"gate": 0.5}), trials, provenance))


@pytest.fixture
def broken(tmp_path, sample):
    """Write the sample with one field changed, the id put right, and return its path."""

    def write(change=lambda payload: None, fix_id=True, encode=json.dumps):
        payload = json.loads(sample)
        change(payload)
        if fix_id:
            payload["id"] = plain_id(payload)
        path = tmp_path / "broken.json"
        path.write_text(encode(payload), encoding="utf-8")
        return path

    return write


def plain_id(payload):
    """The canonical digest, written plainly: numbers that are whole lose their point."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v) for v in value]
        return int(value) if isinstance(value, float) and value == value // 1 and abs(value) < 2**53 else value

    kept = {k: plain(v) for k, v in payload.items() if k not in ("id", "created_at", "environment")}
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@pytest.fixture
def reference_id():
    return plain_id
