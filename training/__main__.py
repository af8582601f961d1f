"""Train the bundled model: `python -m training --work FOLDER`.

The run is seeded and resumable: started again with the same `--work` folder it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import Qwen3Config, Qwen3ForCausalLM

from training.batches import QUESTION_KINDS, Batch, BatchMaker, Shape, block_mask
from training.language import RELATIONS
from training.planting import ATTENTION_NAME, Planting, carried_losses, planting
from training.tokenizer import BOS, EOS, PAD, build_tokenizer, corpus

WINDOW = 2048


@dataclass(frozen=True)
class Phase:
    """A stretch of training: `steps` batches of one shape, with planting weight and numbers' smallest gap fading."""

    name: str
    steps: int
    shape: Shape
    planting: tuple[float, float] = (1.0, 1.0)
    gap: tuple[int, int] = (1, 1)
    is_hard: bool = False  # see `Language.is_hard`


PHASES = (
    Phase("copying", 200, Shape(16, 160, 6, copy_share=1.0)),
    Phase("choosing", 1800, Shape(16, 160, 6, copy_share=0.2, pair_share=0.85), gap=(25, 2)),
    Phase("settling", 700, Shape(16, 160, 6, copy_share=0.4), planting=(1.0, 0.6), gap=(2, 3)),
    Phase("middle", 200, Shape(12, 416, 4, copy_share=0.2), planting=(0.6, 0.4), gap=(3, 3)),
    Phase("long", 150, Shape(4, 960, 8, copy_share=0.2), planting=(0.4, 0.0), gap=(3, 3)),
    Phase("longest", 250, Shape(2, 2000, 12, jump_share=0.3, pair_share=0.6), planting=(0.0, 0.0), gap=(3, 3)),
    Phase("refining", 900, Shape(16, 160, 6, copy_share=0.5), planting=(0.6, 0.4), gap=(3, 3)),
    Phase("middle again", 200, Shape(12, 416, 4, copy_share=0.3), planting=(0.4, 0.2), gap=(3, 3)),
    Phase("long again", 200, Shape(4, 960, 8, copy_share=0.3), planting=(0.2, 0.0), gap=(3, 3)),
    Phase("longest again", 350, Shape(2, 2000, 12, jump_share=0.3, pair_share=0.6), planting=(0.0, 0.0), gap=(3, 3)),
    Phase("hard", 360, Shape(16, 160, 6, copy_share=0.2), planting=(0.5, 0.3), gap=(3, 3), is_hard=True),
    Phase("hard and long", 90, Shape(4, 960, 8, copy_share=0.2), planting=(0.3, 0.0), gap=(3, 3), is_hard=True),
    Phase("hard and longest", 170, Shape(2, 2000, 20, jump_share=0.3, pair_share=0.6), planting=(0.0, 0.0), gap=(3, 3),
          is_hard=True),
    Phase("closing", 80, Shape(10, 256, 6, copy_share=0.1, jump_share=0.3), planting=(0.0, 0.0), gap=(3, 3),
          is_hard=True),
)  # fmt: skip
CHOICE_WEIGHT = 4.0  # how much more the token that decides between two subjects weighs than any other
PEAK_LR, FINAL_LR, WARMUP = 2e-3, 5e-5, 60
# From the start of each of these phases on, the rate falls from the one given to FINAL_LR by half a cosine.
DECAYS = {"settling": PEAK_LR, "refining": 1e-3, "hard": 8e-4, "closing": 2e-4}
AVERAGE_FROM, AVERAGE_DECAY = "hard and long", 0.98  # the weights' running mean, from the start of this phase on


def model_config(tokenizer: Tokenizer) -> Qwen3Config:
    """A six-layer Qwen3 with eight query heads on four key/value heads."""
    return Qwen3Config(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=256, intermediate_size=640, num_hidden_layers=6,
        num_attention_heads=8, num_key_value_heads=4, head_dim=32, max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS), eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
    )  # fmt: skip


class Trainer:
    """One training run: model, optimizer, schedule and the counters that are logged."""

    def __init__(self, tokenizer: Tokenizer, work: Path, seed: int, phases: tuple[Phase, ...] = PHASES) -> None:
        torch.manual_seed(seed)
        self.work, self.seed, self.phases = work, seed, phases
        self.maker = BatchMaker(tokenizer, seed)
        config = model_config(tokenizer)
        config._attn_implementation = ATTENTION_NAME
        self.model = Qwen3ForCausalLM(config)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.model.parameters() if p.ndim > 1], "weight_decay": 0.05},
                {"params": [p for p in self.model.parameters() if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=PEAK_LR, betas=(0.9, 0.98), fused=True,
        )  # fmt: skip
        self.step, self.seconds = 0, 0.0
        self.total = sum(p.steps for p in phases)
        names = [p.name for p in phases]
        self.phase_ends = [(name, sum(p.steps for p in phases[: i + 1])) for i, name in enumerate(names)]
        starts = {name: end - phase.steps for (name, end), phase in zip(self.phase_ends, phases, strict=True)}
        self.decays = [(starts[name], rate) for name, rate in DECAYS.items() if name in starts]
        self.average_from = starts.get(AVERAGE_FROM, self.total)
        self.average: dict[str, torch.Tensor] = {}
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    # -- schedule ---------------------------------------------------------------------------------------------------

    def phase(self) -> tuple[Phase, float]:
        """The phase that the current step belongs to, and the share of it that has passed."""
        start = 0
        for phase in self.phases:
            if self.step < start + phase.steps:
                return phase, (self.step - start) / phase.steps
            start += phase.steps
        raise IndexError(self.step)

    def learning_rate(self) -> float:
        if self.step < WARMUP:
            return PEAK_LR * (self.step + 1) / WARMUP
        ends = [start for start, _ in self.decays[1:]] + [self.total]
        for (start, rate), end in zip(self.decays, ends, strict=True):
            if start <= self.step < end:
                passed = (self.step - start) / (end - start)
                return FINAL_LR + (rate - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * passed))
        return PEAK_LR

    # -- one step ---------------------------------------------------------------------------------------------------

    def train_step(self) -> None:
        phase, passed = self.phase()
        self.maker.reseed(self.seed * 1_000_003 + self.step)
        self.maker.gap = round(phase.gap[0] + (phase.gap[1] - phase.gap[0]) * min(1.0, passed * 1.5))
        self.maker.relations, self.maker.language.is_hard = RELATIONS, phase.is_hard
        weight = phase.planting[0] + (phase.planting[1] - phase.planting[0]) * passed
        batch = self.maker.batch(phase.shape)
        lr = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        task, planted = self.losses(batch, phase.shape)
        (task + weight * sum(planted.values()) / 4).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.step >= self.average_from:
            self._average()

    @torch.no_grad()
    def _average(self) -> None:
        """Move the running mean of the weights towards the present ones."""
        for name, value in self._weights().items():
            if name in self.average:
                self.average[name].lerp_(value, 1 - AVERAGE_DECAY)
            else:
                self.average[name] = value.clone()

    def _weights(self) -> dict[str, torch.Tensor]:
        return {k: v for k, v in self.model.state_dict().items() if k != "lm_head.weight"}

    def losses(self, batch: Batch, shape: Shape):  # type: ignore[no-untyped-def]
        state = Planting(block_mask(shape), shape.context, shape.block, batch.links)
        with planting(state), torch.autocast("cpu", torch.bfloat16):
            out = self.model.model(
                input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=state.mask,
                use_cache=False, output_hidden_states=True,
            )  # fmt: skip
            hidden = out.last_hidden_state
            state.losses.update(carried_losses(self.model, out.hidden_states, batch.links))
            labels = batch.labels.flatten()
            order = torch.argsort((labels < 0).int(), stable=True)
            room = round(shape.sequences * shape.questions * (24 + 24 * shape.copy_share))
            picked = order[:room]
            logits = (hidden.flatten(0, 1)[picked] @ self.model.lm_head.weight.T).float()
        weights = torch.ones(labels.shape)
        rows = torch.arange(shape.sequences)[:, None] * shape.length
        weights[(rows + batch.chosen_at)[batch.chosen_at >= 0]] = CHOICE_WEIGHT
        each = cross_entropy(logits, labels[picked], ignore_index=-100, reduction="none")
        loss = (each * weights[picked]).sum() / (weights[picked] * (labels[picked] >= 0)).sum()
        self._count("task", loss.item())
        for (head, kind), value in state.losses.items():
            self._count(f"{head.layer}-{head.head} {kind}", value.item())
        self._count_exact(batch, shape, logits.argmax(-1), picked, labels)
        return loss, state.losses

    def _count(self, name: str, value: float, weight: float = 1.0) -> None:
        self.sums[name][0] += value * weight
        self.sums[name][1] += weight

    def _count_exact(self, batch, shape, guesses, picked, labels) -> None:  # type: ignore[no-untyped-def]
        right = torch.ones(labels.shape, dtype=torch.bool)
        right[picked] = (guesses == labels[picked]) | (labels[picked] < 0)
        right = right.view(shape.sequences, shape.length)
        exact = right[:, shape.context :].reshape(shape.sequences, shape.questions, shape.block).all(-1)
        chose = right.gather(1, batch.chosen_at.clamp(min=0)) & (batch.chosen_at >= 0)
        for index, kind in enumerate(QUESTION_KINDS):
            of_kind = batch.kinds == index
            if of_kind.any():
                self._count(f"exact {kind}", exact[of_kind].float().mean().item(), of_kind.sum().item())
            decided = of_kind & (batch.chosen_at >= 0)
            if decided.any():
                self._count(f"chose {kind}", chose[decided].float().mean().item(), decided.sum().item())

    # -- the run ----------------------------------------------------------------------------------------------------

    def run(self, *, log_every: int = 25, save_every: int = 200, until: int | None = None) -> None:
        while self.step < min(self.total, until or self.total):
            begin = time.perf_counter()
            self.train_step()
            self.seconds += time.perf_counter() - begin
            if self.step % log_every == 0:
                self._log()
            ended = next((name for name, end in self.phase_ends if end == self.step), None)
            if ended or self.step % save_every == 0:
                self.save()
            if ended:
                self.keep(ended)

    def _log(self) -> None:
        phase, _ = self.phase() if self.step < self.total else (self.phases[-1], 1.0)
        means = {k: round(s / n, 3) for k, (s, n) in sorted(self.sums.items())}
        line = {
            "step": self.step,
            "phase": phase.name,
            "minutes": round(self.seconds / 60, 1),
            "gap": self.maker.gap,
            **means,
        }
        self.sums.clear()
        with (self.work / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Checkpoint weights, optimizer moments and counters, each file replaced in one move."""
        moments = {
            f"{i}.{name}": value
            for i, state in self.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        _replace(self.work / "optimizer.safetensors", moments, {"step": str(self.step), "seconds": str(self.seconds)})
        _replace(self.work / "model.safetensors", self._weights(), {"step": str(self.step)})
        if self.average:
            _replace(self._folder("average") / "model.safetensors", self.average, {"step": str(self.step)})

    def _folder(self, name: str) -> Path:
        """A subfolder that `export` takes: with the tokenizer in it."""
        folder = self.work / name
        folder.mkdir(exist_ok=True)
        shutil.copy(self.work / "tokenizer.json", folder / "tokenizer.json")
        return folder

    def keep(self, phase: str) -> None:
        """Keep the weights of a phase's end in a folder of its own."""
        shutil.copy(self.work / "model.safetensors", self._folder(phase) / "model.safetensors")

    def resume(self) -> bool:
        if not (self.work / "model.safetensors").exists():
            return False
        from safetensors import safe_open

        with safe_open(self.work / "optimizer.safetensors", "pt") as file:
            meta = file.metadata()
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        self.model.load_state_dict(load_file(self.work / "model.safetensors"), strict=False)
        state: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
        for key, value in load_file(self.work / "optimizer.safetensors").items():
            index, name = key.split(".")
            state[int(index)][name] = value
        if (self.work / "average" / "model.safetensors").exists():
            self.average = load_file(self.work / "average" / "model.safetensors")
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": dict(state)})
        return True


def _replace(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    partial = path.with_suffix(".partial")
    save_file({k: v.contiguous() for k, v in tensors.items()}, partial, metadata)
    partial.replace(path)


def compile_pieces() -> None:
    """Compile the small element-wise parts of the model: about a quarter of the time on a CPU."""
    from transformers.models.qwen3 import modeling_qwen3 as qwen3

    for part in (qwen3.Qwen3MLP, qwen3.Qwen3RMSNorm):
        setattr(part, "forward", torch.compile(part.forward, dynamic=False))  # noqa: B010
    qwen3.apply_rotary_pos_emb = torch.compile(qwen3.apply_rotary_pos_emb, dynamic=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of checkpoints and log, outside the repository"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=int, default=None, help="stop after this step")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch._dynamo.config.cache_size_limit = 64
    compile_pieces()
    tokenizer_file = options.work / "tokenizer.json"
    if not tokenizer_file.exists():
        build_tokenizer(corpus()).save(str(tokenizer_file))
    trainer = Trainer(Tokenizer.from_file(str(tokenizer_file)), options.work, options.seed)
    trainer.resume()
    trainer.run(until=options.until)


if __name__ == "__main__":
    main()
