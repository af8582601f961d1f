"""What the survey checks of one model: its use by headprobe against its own eager attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.survey_models import VOCABULARY
from headprobe.attention.rows import AttentionRows, row_capture, wanted_rows
from headprobe.compression.session import compress
from headprobe.errors import HeadprobeError
from headprobe.evaluation.knockout.switched_off import hidden_span
from headprobe.evaluation.value_norms import measure_value_norms, norm_capture
from headprobe.models.config import one_line, read_geometry
from headprobe.models.releases import cache_of, with_cache
from headprobe.probes.prompt import Prompt
from headprobe.profiling.estimators import ESTIMATORS
from headprobe.profiling.prefix import PrefixCache
from headprobe.profiling.profiler import Measured, Profiler
from headprobe.spans import Span

TOKENS = 50
ANSWER = Span(20, 24)
STEPS = 4


class WrongResultError(Exception):
    """A result that is not that of the model's own attention."""


@dataclass(frozen=True)
class Subject:
    """A model, and what its own eager attention says of `ids` `[1, TOKENS]`: weights of each layer, and logits.

    `leaves_sinks_out`: the weights that it hands out sum to 1 though learnt sinks take their share (Granite); then
    rows are compared without that share, and the sinks by the logits alone.
    """

    model: Any
    ids: torch.Tensor
    attentions: tuple[torch.Tensor, ...]
    logits: torch.Tensor
    leaves_sinks_out: bool

    @classmethod
    def of(cls, model: Any) -> Subject:
        """Run the model's own attention."""
        ids = torch.randperm(VOCABULARY - 3, generator=torch.Generator().manual_seed(1))[None, :TOKENS] + 3
        with torch.no_grad():
            out = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True, use_cache=False)
        attentions = tuple(a for a in out.attentions or () if a is not None)
        sinks = any(name.endswith("sinks") for name, _ in model.named_parameters())
        sums = torch.stack([weights.sum(-1) for weights in attentions])
        return cls(model, ids, attentions, out.logits, sinks and torch.allclose(sums, torch.ones(1)))


def verdict(check: Callable[[Subject], None], subject: Subject) -> str:
    """ "ok", or what stood in the way."""
    try:
        check(subject)
    except HeadprobeError as error:
        return f"refused: {error}"
    except WrongResultError as error:
        return f"wrong: {error}"
    except Exception as error:
        return f"internal error: {type(error).__name__}: {one_line(error)}"
    return "ok"


def check_score(subject: Subject) -> None:
    """r2 scores, then captured rows and logits, read in two pieces, against the eager weights."""
    model, ids = subject.model, subject.ids
    _check_r2(subject)
    rows: list[AttentionRows] = []
    config = model.config.get_text_config(decoder=True)
    cache = PrefixCache(config.num_hidden_layers, TOKENS)
    with row_capture(model), torch.inference_mode():
        model(input_ids=ids[:, :-20], use_cache=True, logits_to_keep=1, **with_cache(model, cache))
        with wanted_rows(STEPS, rows.append):
            out = model(input_ids=ids[:, -20:], use_cache=True, logits_to_keep=STEPS, **with_cache(model, cache))
    compare("logits", out.logits[:, -STEPS:], subject.logits[:, -STEPS:])
    for layer, (found, weights) in enumerate(zip(rows, subject.attentions, strict=True)):
        ours = found.weights
        if subject.leaves_sinks_out:
            ours = ours / ours.sum(-1, keepdim=True)
        compare(f"rows of layer {layer}", ours, weights[0, :, -STEPS:])


def _check_r2(subject: Subject) -> None:
    """The r2 scores of one trial in which the model says what it likes, against its eager weights step by step."""
    model, ids = subject.model, subject.ids
    said: list[int] = []
    expected = torch.zeros(len(subject.attentions), subject.attentions[0].shape[1], dtype=torch.float64)
    for _ in range(STEPS):
        so_far = torch.cat([ids, torch.tensor([said], dtype=torch.int64)], 1)
        with torch.no_grad():
            seen = torch.ones_like(so_far)
            out = model(input_ids=so_far, attention_mask=seen, output_attentions=True, use_cache=False)
        said.append(int(out.logits[0, -1].argmax()))
        for layer, weights in enumerate(out.attentions):
            top = weights[0, :, -1].topk(len(ANSWER))
            inside = (top.indices >= ANSWER.start) & (top.indices < ANSWER.end)
            expected[layer] += (top.values * inside).sum(-1) / len(ANSWER)
    gold = (said[0], said[1], (said[2] + 1) % VOCABULARY, 3)  # agrees for two steps
    prompt = Prompt("t0", "", tuple(ids[0].tolist()), ANSWER, None, Span(TOKENS - 4, TOKENS), ANSWER, gold, 0.0)
    ((_, measured),) = Profiler(model, [ESTIMATORS["r2"]], set(), prefill_chunk=16).measure([prompt])
    if not isinstance(measured, Measured) or list(measured.produced) != said:
        raise WrongResultError(f"the answer {measured}, not {said}")
    if not subject.leaves_sinks_out:
        compare("r2 scores", measured.scores["r2"], expected)


def check_compress(subject: Subject) -> None:
    """Greedy tokens on a cache that keeps all against the model's own, then one that evicts all the time."""
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    own = subject.model.generate(subject.ids, attention_mask=torch.ones_like(subject.ids), **options)[0, TOKENS:]
    with compress(subject.model, "full") as session:
        ours = session.generate(subject.ids, attention_mask=torch.ones_like(subject.ids), **options)[0, TOKENS:]
    if own.tolist() != ours.tolist():
        raise WrongResultError(f"tokens {ours.tolist()}, generate() gives {own.tolist()}")
    for policy in ("snapkv", "h2o"):
        with compress(subject.model, policy, budget=12) as session:
            session.generate(subject.ids, **options)


def check_norms(subject: Subject) -> None:
    """Shares of attention against column sums of the eager weights."""
    model = subject.model
    geometry = read_geometry(model.config, Path(model.config.model_type))
    loaded: Any = SimpleNamespace(model=model, geometry=geometry, name="it", device=model.device, window=TOKENS)
    measured = measure_value_norms(loaded, subject.ids[0].tolist())
    for layer, weights in zip(measured.layers, subject.attentions, strict=True):
        shares = torch.from_numpy(layer.attention)
        sums = weights[0].sum(1).view(shares.shape[0], -1, TOKENS).mean(1) / TOKENS
        if not subject.leaves_sinks_out:
            compare(f"shares of layer {layer.layer}", shares, sums)
    with norm_capture(model, {}), torch.no_grad():
        compare("logits", model(input_ids=subject.ids, use_cache=False).logits, subject.logits)


def check_knockout(subject: Subject) -> None:
    """Nothing hidden changes nothing; something hidden is the same in a whole pass and token by token."""
    model, ids = subject.model, subject.ids
    with torch.no_grad():
        with hidden_span(model, [], ANSWER):
            compare("logits", model(input_ids=ids, use_cache=False).logits, subject.logits)
        with hidden_span(model, [(0, 1), (1, 2)], ANSWER):
            whole = model(input_ids=ids, use_cache=False).logits[:, -1]
            past = cache_of(model(input_ids=ids[:, :-2], use_cache=True))
            for at in (-2, -1):
                step = model(input_ids=ids[:, at:][:, :1], use_cache=True, **with_cache(model, past)).logits[:, -1]
    compare("decoding", step, whole)
    if torch.allclose(whole, subject.logits[:, -1], atol=1e-4):
        raise WrongResultError("hiding a span from two heads changes nothing")


def compare(what: str, ours: torch.Tensor, own: torch.Tensor) -> None:
    """Raise `WrongResultError` unless two tensors are equal up to rounding."""
    if ours.shape != own.shape:
        raise WrongResultError(f"{what} of the shape {list(ours.shape)}, not {list(own.shape)}")
    off = float((ours - own).abs().max() / own.abs().max().clamp(min=1.0))
    if not off < 1e-3:
        raise WrongResultError(f"{what} off by {off:.2g}")


CHECKS: dict[str, Callable[[Subject], None]] = {
    "score": check_score,
    "compress": check_compress,
    "norms": check_norms,
    "knockout": check_knockout,
}
