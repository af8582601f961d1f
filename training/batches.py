"""Training batches of one fixed shape: a context, then question blocks that see the context but not each other.

Every block stands where the context ends, so each question is met exactly as at inference: alone behind its text.
Beside tokens and labels a batch carries, per kind of planted head, which position should look at which (`Links`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer

from training.language import RELATIONS, Fact, Language, NeedleMaker, Pair, Sentence
from training.tokenizer import BOS, EOS, PAD

LINK_KINDS = (
    "previous1", "previous2", "previous3", "naming", "comparing", "repeated", "resolving", "pointing", "copying",
    "copying_on", "choosing",
)  # fmt: skip


QUESTION_KINDS = ("copy", "name", "lookup", "compare")


@dataclass(frozen=True)
class Shape:
    """Fixed sizes of a batch, in tokens, and what its sequences are made of."""

    sequences: int
    context: int
    questions: int
    block: int = 48
    copy_share: float = 0.1  # share of sequences that only repeat stretches of their context
    pair_share: float = 0.75  # share of needle sequences with a reasoning needle
    max_position: int = 2304
    jump_share: float = 0.7  # share of sequences whose positions leap, so that short contexts span the whole window

    @property
    def length(self) -> int:
        return self.context + self.questions * self.block


@dataclass
class Batch:
    """`input_ids`, `position_ids`, `labels` [B, T] (-100: no loss), and links `kind -> (query, target, carried)`, each
    [B, R] (-1: none): the query position, the position to look at, and the token whose identity should arrive."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    links: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    kinds: torch.Tensor  # [B, questions]: index into QUESTION_KINDS
    chosen_at: torch.Tensor  # [B, questions]: the position whose prediction decides between the two subjects (-1: none)


def block_mask(shape: Shape) -> torch.Tensor:
    """The `[1, 1, T, T]` boolean mask: causal, and blocks see the context and themselves only."""
    index = torch.arange(shape.length)
    block = torch.where(index < shape.context, -1, (index - shape.context) // shape.block)
    causal = index[:, None] >= index[None, :]
    return (causal & ((block[None, :] == -1) | (block[:, None] == block[None, :])))[None, None]


class _Tokens:
    """Tokenizes pieces and whole sentences, remembering what it has seen."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._seen: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        ids = self._seen.get(text)
        if ids is None:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if len(self._seen) < 400_000:
                self._seen[text] = ids
        return ids

    def sentence(self, sentence: Sentence) -> tuple[list[int], dict[str, tuple[int, int]]]:
        """Token ids, and for each role its (first, last) token."""
        ids: list[int] = []
        spans: dict[str, tuple[int, int]] = {}
        for piece in sentence:
            new = self(piece.text)
            if piece.role:
                start = spans.get(piece.role, (len(ids), 0))[0]
                lead = 1 if self._tokenizer.id_to_token(new[0]) == "\u0120" and len(new) > 1 else 0
                spans[piece.role] = (start if piece.role in spans else len(ids) + lead, len(ids) + len(new) - 1)
            ids += new
        return ids, spans


@dataclass
class _Placed:
    """A sentence with its token ids, role spans and, once the context stands, its start."""

    ids: list[int]
    spans: dict[str, tuple[int, int]]
    start: int = -1

    def at(self, role: str, last: bool = False) -> int:
        return self.start + self.spans[role][1 if last else 0]


@dataclass(frozen=True)
class _Ask:
    """A question about a fact: by name, by comparison or by attribute, and where the asked-for subject stands."""

    fact: Fact
    placed: _Placed
    how: str = "name"
    pair: Pair | None = None
    which: int = 0
    introduction: _Placed | None = None


_Links = dict[str, list[tuple[int, ...]]]


class BatchMaker:
    """Makes random batches; the same seed gives the same batches."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.language = Language(seed)
        self.language.learn_vocabulary(sorted(tokenizer.get_vocab()))
        self.random = self.language.random
        self.numpy = np.random.default_rng(seed)
        self.tokens = _Tokens(tokenizer)
        self.needles = NeedleMaker(self.language, lambda text: self.tokens(text)[0])
        self.vocab_size = tokenizer.get_vocab_size()
        self.bos, self.eos, self.pad = (tokenizer.token_to_id(t) for t in (BOS, EOS, PAD))
        self.head = [self.bos, *self.tokens("Text:")]
        self.ask, self.answer = self.tokens("\n\nQuestion:"), self.tokens("\nAnswer:")
        self.relations = RELATIONS
        self.gap = 1

    def reseed(self, seed: int) -> None:
        """Start the random stream anew, so that batch `n` of a run is the same however often the run was resumed."""
        self.random.seed(seed)
        self.numpy = np.random.default_rng(seed)

    def batch(self, shape: Shape) -> Batch:
        rows = [
            self._copy_row(shape) if self.random.random() < shape.copy_share else self._needle_row(shape)
            for _ in range(shape.sequences)
        ]
        ids, positions, labels, links, kinds, chosen = zip(*rows, strict=True)
        sizes = link_sizes(shape)
        tables = {k: tuple(np.full((len(rows), n), -1) for _ in range(3)) for k, n in sizes.items()}
        for row, link in enumerate(links):
            for kind, found in link.items():
                if len(found) > sizes[kind]:
                    found = self.random.sample(found, sizes[kind])
                for column, values in enumerate(found):
                    for table, value in zip(tables[kind], values, strict=False):
                        table[row, column] = value
        return Batch(
            torch.from_numpy(np.stack(ids)),
            torch.from_numpy(np.stack(positions)),
            torch.from_numpy(np.stack(labels)),
            {k: tuple(torch.from_numpy(t) for t in three) for k, three in tables.items()},  # type: ignore[misc]
            torch.tensor(kinds),
            torch.tensor(chosen),
        )

    # -- rows -------------------------------------------------------------------------------------------------------

    def _frame(self, shape: Shape):  # type: ignore[no-untyped-def]
        ids = np.full(shape.length, self.pad)
        labels = np.full(shape.length, -100)
        links: _Links = defaultdict(list)
        for k in (1, 2, 3):
            picks = self.numpy.integers(k, shape.length, 32)
            inside = np.where(picks < shape.context, picks, (picks - shape.context) % shape.block)
            links[f"previous{k}"] = [(int(p), int(p) - k) for p in picks[inside >= k]]
        return ids, labels, links

    def _positions(self, shape: Shape, starts: list[int]) -> np.ndarray:
        context = np.arange(shape.context)
        room = shape.max_position - shape.context - shape.block
        if room > 0 and starts and self.random.random() < shape.jump_share:
            total = int(room * self.random.random())
            cuts = self.random.sample(starts, min(len(starts), self.random.randint(1, 3)))
            shares = self.numpy.dirichlet(np.ones(len(cuts))) * total
            for cut, share in zip(cuts, shares, strict=True):
                context[cut:] += int(share)
        block = context[-1] + 1 + np.arange(shape.block)
        return np.concatenate([context, np.tile(block, shape.questions)])

    def _copy_row(self, shape: Shape):  # type: ignore[no-untyped-def]
        ids, labels, links = self._frame(shape)
        if self.random.random() < 0.6:
            ids[: shape.context] = self.numpy.integers(3, self.vocab_size, shape.context)
            starts = list(range(8, shape.context - 8))
        else:
            ids[: shape.context], starts = self._context(shape, [])
        for q in range(shape.questions):
            base = shape.context + q * shape.block
            source = self.random.randrange(1, shape.context - shape.block)
            ids[base : base + shape.block] = ids[source : source + shape.block]
            for i in range(4, shape.block):
                labels[base + i - 1] = ids[source + i]
                links["copying"].append((base + i - 1, source + i))
                links["copying_on"].append((base + i - 1, source + i))
        none = [0] * shape.questions
        return ids, self._positions(shape, starts), labels, links, none, [-1] * shape.questions

    def _context(self, shape: Shape, groups: list[list[_Placed]]):  # type: ignore[no-untyped-def]
        """Context ids with each group of sentences inserted between filler sentences; also all sentence starts."""
        room = shape.context - len(self.head) - sum(len(s.ids) for g in groups for s in g)
        fillers: list[list[int]] = []
        while room > 0:
            text = self.language.filler()
            lead = "\n\n" if fillers and self.random.random() < 0.15 else " "
            sentence = self.tokens(lead + text) if lead == " " else [*self.tokens("\n\n"), *self.tokens(text)]
            fillers.append(sentence[:room])
            room -= len(fillers[-1])
        slots = sorted((self.random.randint(0, len(fillers)), i) for i in range(len(groups)))
        ids, starts = list(self.head), []
        for place in range(len(fillers) + 1):
            while slots and slots[0][0] == place:
                for placed in groups[slots.pop(0)[1]]:
                    placed.start = len(ids)
                    ids += placed.ids
            if place < len(fillers):
                starts.append(len(ids))
                ids += fillers[place]
        return np.array(ids), starts[1:]

    def _placed(self, sentence: Sentence) -> _Placed:
        return _Placed(*self.tokens.sentence(sentence))

    def _needle_row(self, shape: Shape):  # type: ignore[no-untyped-def]
        ids, labels, links = self._frame(shape)
        self.needles.new_context()
        asks: list[_Ask] = []
        groups: list[list[_Placed]] = []
        needle = self._pair(asks, groups) if self.random.random() < shape.pair_share else None
        for _ in range(self.random.randint(1, 2) if needle else 3):
            fact = self.needles.single()
            groups.append([self._placed(fact.sentence)])
            asks.append(_Ask(fact, groups[-1][0]))
        self.random.shuffle(asks)
        ids[: shape.context], starts = self._context(shape, groups)
        if needle:
            self._link_pair(*needle, links)
        asked = [asks[q % len(asks)] for q in range(shape.questions)]
        bases = range(shape.context, shape.length, shape.block)
        chosen = [
            self._block(base, shape.block, ask, ids, labels, links) for base, ask in zip(bases, asked, strict=True)
        ]
        kinds = [QUESTION_KINDS.index(ask.how) for ask in asked]
        return ids, self._positions(shape, starts), labels, links, kinds, chosen

    def _pair(self, asks: list[_Ask], groups: list[list[_Placed]]) -> tuple[Pair, list[_Placed], list[_Placed]]:
        """A reasoning needle: its sentences go to `groups`, all its questions to `asks`."""
        pair = self.needles.pair(self.relations, self.gap)
        introductions = [self._placed(s) for s in pair.introductions]
        facts = [self._placed(f.sentence) for f in pair.facts]
        order = [0, 1] if self.random.random() < 0.5 else [1, 0]
        groups.append([*introductions, *(facts[i] for i in order)])
        hows = (["compare", "compare", "compare", "lookup"] if pair.sizes else ["lookup", "lookup"]) + ["name"]
        asks += [_Ask(pair.facts[i], facts[i], how, pair, i, introductions[i]) for i in (0, 1) for how in hows]
        return pair, introductions, facts

    def _link_pair(self, pair: Pair, introductions: list[_Placed], facts: list[_Placed], links: _Links) -> None:
        for sentence in introductions:
            first, last = sentence.spans["attribute"]
            first = last if pair.sizes else first
            name = sentence.ids[sentence.spans["subject"][0]]
            links["naming"] += [(sentence.start + i, sentence.at("subject"), name) for i in range(first, last + 1)]
        if pair.sizes:
            one, two = introductions
            links["comparing"].append((two.at("attribute", last=True), one.at("attribute", last=True)))
        for fact, introduction in zip(facts, introductions, strict=True):
            first, last = fact.at("subject"), fact.at("subject", last=True)
            links["repeated"] += [(i, introduction.at("subject") + i - first) for i in range(first, last + 1)]

    def _block(self, base: int, size: int, ask: _Ask, ids, labels, links: _Links) -> int:  # type: ignore[no-untyped-def]
        """Write a question with its answer at `base`; gives the position whose prediction decides between subjects."""
        placed = ask.placed
        question = self._placed(self.needles.question(ask.fact, ask.pair, ask.which, ask.how))
        prefix = [*self.ask, *question.ids, *self.answer]
        question.start = base + len(self.ask)
        answer = [*placed.ids, self.eos]
        tokens = (prefix + answer)[:size]
        ids[base : base + len(tokens)] = tokens
        name = placed.spans["subject"][0]
        for i in range(len(tokens) - len(prefix)):
            query = base + len(prefix) + i - 1
            labels[query] = answer[i]
            if i < len(answer) - 1:
                self._link_copy(query, placed.start + i, i, name, ask.pair is None, links)
        self._link_chain(base + len(prefix), base + size, question, ask, links)
        decided = base + len(prefix) + name - 1
        return decided if decided < base + size and ask.pair is not None else -1

    @staticmethod
    def _link_copy(query: int, target: int, i: int, name: int, single: bool, links: _Links) -> None:
        """Token `i` of the answer is to be copied; before the name nothing tells two facts of one shape apart."""
        if i >= name or (i >= 3 and single):
            links["copying"].append((query, target))
        if i == name:
            links["choosing"].append((query, target))
        if i > name + 1 or (i >= 3 and single and i < name):
            links["copying_on"].append((query, target))

    @staticmethod
    def _link_chain(start: int, end: int, question: _Placed, ask: _Ask, links: _Links) -> None:
        """From the answer's start to the question's descriptor, and from there to the attribute that it means."""
        name = ask.placed.spans["subject"][0]
        token = ask.placed.ids[name]
        by_name = ask.how == "name" or ask.introduction is None
        descriptor = question.at("descriptor-name") if by_name else question.at("descriptor", last=True)
        for i in range(max(0, name - 1), name + 1):
            if start + i < end:
                links["pointing"].append((start + i - 1, descriptor, token))
        if ask.introduction is None or by_name:
            links["resolving"].append((descriptor, ask.placed.at("subject"), token))
        else:
            links["resolving"].append((descriptor, ask.introduction.at("attribute", last=True), token))


def link_sizes(shape: Shape) -> dict[str, int]:
    """How many links of each kind a row holds at most."""
    return {
        "previous1": 32, "previous2": 32, "previous3": 32, "naming": 12, "comparing": 1, "repeated": 10,
        "resolving": shape.questions, "pointing": 2 * shape.questions, "choosing": shape.questions,
        "copying": 14 * shape.questions, "copying_on": 14 * shape.questions,
    }  # fmt: skip
