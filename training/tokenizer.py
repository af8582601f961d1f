"""Build the byte-level BPE tokenizer of the bundled model.

Numbers are cut into groups of at most two digits, and all one hundred two-digit groups are in the vocabulary, so
that a number's size sits in one embedding whatever stands around it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from training.language import Language, NeedleMaker

HAYSTACKS = Path(__file__).parents[1] / "haystacks"
BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"
VOCAB_SIZE = 2048
_PIECES = r"'\p{L}+| ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s"


def corpus(seed: int = 1) -> Iterator[str]:
    """What the tokenizer learns from: shipped haystacks, training prose, made-up needles, the word list, the template.

    The haystacks are seen here alone: the model is never trained on them.
    """
    language = Language(seed)
    maker = NeedleMaker(language, lambda text: text)
    for folder in sorted(f for f in HAYSTACKS.iterdir() if f.is_dir()):
        for file in sorted(folder.glob("*.txt")):
            yield from file.read_text().split("\n\n")
    yield from language.prose
    for number in range(6000):
        if number % 200 == 0:
            maker.new_context()
        pair = maker.pair()
        question = maker.question(pair.facts[0], pair, 0, "compare" if pair.sizes else "lookup")
        sentences = (*pair.introductions, pair.facts[0].sentence, question)
        yield " ".join("".join(piece.text for piece in sentence) for sentence in sentences)
    yield from (" " + word for word in language.words * 3)
    yield from ["Text:\n\nQuestion: \nAnswer:"] * 300


def build_tokenizer(texts: Iterable[str], *, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> Tokenizer:
    """Train a BPE of `vocab_size` entries on `texts`, with every two-digit number as one entry."""
    numbers = [f"{n:02d}" for n in range(100)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    corpus = list(texts) + [f"{n}," for n in numbers for _ in range(2000)]
    random.Random(seed).shuffle(corpus)
    tokenizer.train_from_iterator(corpus, trainer)
    missing = [n for n in numbers if tokenizer.token_to_id(n) is None]
    if missing:
        raise RuntimeError(f"the tokenizer lacks the numbers {missing}: give it a larger vocabulary than {vocab_size}")
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, max_length: int) -> None:
    """Write `tokenizer` as a transformers fast tokenizer that puts the begin token before every text."""
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)
