"""`python -m benchmarks.survey`: every causal decoder of transformers, as a tiny random model, in four uses.

    python -m benchmarks.survey [--only gpt2,llama4] [--no-write]

For each family: are captured attention rows, r2 scores and logits those of the model's own eager attention; are the
greedy tokens of policy `full` those of `generate()`; are the shares of attention that `norms` gives the column sums of
eager attention; does hiding nothing change nothing, and hide decoding what a whole pass hides? Each is "ok", "refused:
why" (an error of headprobe's own), "wrong: what" or "internal error: what". The table goes into `docs/models.md`, the
results to `benchmarks/results/survey-<device>.json`. Exit code 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.environment import environment, write_result
from benchmarks.survey_models import SKIPPED, VOCABULARY, families, tiny_configs, tiny_model
from headprobe.compression.session import compress
from headprobe.errors import HeadprobeError
from headprobe.evaluation.knockout import hidden_span
from headprobe.evaluation.value_norms import measure_value_norms, norm_capture
from headprobe.models.decoders import check_decoder, one_line, read_geometry
from headprobe.models.releases import cache_of, with_cache
from headprobe.probes.prompt import Prompt
from headprobe.profiling.attention_rows import AttentionRows, row_capture, wanted_rows
from headprobe.profiling.estimators import ESTIMATORS
from headprobe.profiling.prefix_cache import PrefixCache
from headprobe.profiling.profiler import Measured, Profiler
from headprobe.spans import Span

TOKENS = 50
ANSWER = Span(20, 24)
STEPS = 4
USES = ("score", "compress", "norms", "knockout")
PAGE = Path(__file__).parents[1] / "docs" / "models.md"
MARKS = "<!-- survey: begin -->\n", "<!-- survey: end -->\n"


class WrongResultError(Exception):
    """A result that is not that of the model's own attention."""


@dataclass(frozen=True)
class Row:
    """What came out for one family, a verdict for each use."""

    model_type: str
    model_class: str
    score: str
    compress: str
    norms: str
    knockout: str

    @property
    def is_bad(self) -> bool:
        """Whether anything is wrong, or ended in an error that is not headprobe's own."""
        return any(getattr(self, use).startswith(("wrong", "internal error")) for use in USES)


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


def survey(only: Collection[str] = ()) -> Iterator[Row]:
    """The rows of all families, or of those whose model types are given; a row for each kind of layers of a family."""
    for kind, config_class, model_class in families():
        if only and kind not in only:
            continue
        if kind in SKIPPED:
            yield Row(kind, model_class.__name__, *[f"skipped: {SKIPPED[kind]}"] * len(USES))
            continue
        for name, config in tiny_configs(kind, config_class):
            yield survey_family(name, config, model_class)


def survey_family(kind: str, config: Any, model_class: type) -> Row:
    """The row of one family."""
    try:
        check_decoder(config, Path(kind))
        read_geometry(config, Path(kind))
    except HeadprobeError as error:
        refusal = "refused: " + str(error).removeprefix(f"{kind}: ")
        return Row(kind, model_class.__name__, *[refusal] * len(USES))
    try:
        subject = Subject.of(tiny_model(config, model_class))
    except Exception as error:
        return Row(kind, model_class.__name__, *[f"internal error: no tiny model: {one_line(error)}"] * len(USES))
    checks = (check_score, check_compress, check_norms, check_knockout)
    return Row(kind, model_class.__name__, *(verdict(check, subject) for check in checks))


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
    options = {"max_new_tokens": 8, "do_sample": False}
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


def table(rows: Sequence[Row], version: str) -> str:
    """The results as a Markdown table; reasons for a refusal stand below it, numbered."""
    reasons: list[str] = []

    def cell(text: str) -> str:
        if text == "ok" or not text.startswith("refused"):
            return text
        reason = text.removeprefix("refused: ")
        if reason not in reasons:
            reasons.append(reason)
        return f"refused ({reasons.index(reason) + 1})"

    lines = [f"transformers {version}:", "", "| model type | class | " + " | ".join(USES) + " |", "|---" * 6 + "|"]
    for row in rows:
        cells = [f"`{row.model_type}`", row.model_class, *(cell(getattr(row, use)) for use in USES)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1)), ""]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Survey, print, write; 1 where anything is wrong."""
    import transformers

    parser = argparse.ArgumentParser(prog="python -m benchmarks.survey")
    parser.add_argument("--only", default="", help="model types, separated by commas")
    parser.add_argument("--no-write", action="store_true", help="leave docs and results as they are")
    options = parser.parse_args(arguments)
    only = {kind for kind in options.only.split(",") if kind}
    rows = []
    for row in survey(only):
        rows.append(row)
        print(f"{row.model_type:28}", *(f"{use}: {getattr(row, use)[:150]}" for use in USES), sep=" | ", flush=True)
    if not (options.no_write or only):
        page = PAGE.read_text(encoding="utf-8")
        head, tail = page.split(MARKS[0])[0], page.split(MARKS[1])[1]
        PAGE.write_text(head + MARKS[0] + table(rows, transformers.__version__) + MARKS[1] + tail, encoding="utf-8")
        result = {"environment": environment(), "families": [asdict(row) for row in rows]}
        print("written to", PAGE, "and", write_result("survey", result))
    bad = [row.model_type for row in rows if row.is_bad]
    print(f"{len(rows)} families, {len(bad)} of them wrong: {', '.join(bad) or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
