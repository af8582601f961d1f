"""Tiny tokenizers of several makes, trained on the spot. `toy_tokenizer(kind)` gives one of `KINDS`.

byte-bpe        bytes, BPE inside words, a begin token in front
byte-bpe-trim   the same with offsets that leave out the space before a word
words           whole words and punctuation, no special tokens
pieces          lower-cased word pieces between [CLS] and [SEP]
unigram         "▁" for spaces, split at words, a begin and an end token
spanning        "▁" for spaces and merges that run across words and sentence ends
chat            byte-bpe with a chat template
"""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from headprobe.probes.haystack import load_haystack
from headprobe.probes.needle import load_needles

KINDS = ("byte-bpe", "byte-bpe-trim", "words", "pieces", "unigram", "spanning", "chat")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
BOS, EOS = "<|begin|>", "<|end|>"


@cache
def corpus() -> tuple[str, ...]:
    """Text whose words all toy tokenizers know: the shipped needles, some of the essays, and the templates."""
    needles = [needle for name in ("retrieval", "reasoning", "nonliteral") for needle in load_needles(name).needles]
    texts = [f"{needle.text} {needle.question}" for needle in needles]
    frame = "Text: Question: Answer: Answer with the full sentence from the text."
    return (*texts, *load_haystack("essays").paragraphs[:36], frame, "user assistant system")


@cache
def toy_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """The toy tokenizer of that kind; the same object each time, so do not change it."""
    makers = {"words": _words, "pieces": _pieces, "unigram": _unigram, "spanning": _spanning}
    if kind in makers:
        return makers[kind]()
    return _byte_bpe(trim=kind == "byte-bpe-trim", chat=kind == "chat")


def with_chat_template(template: str) -> PreTrainedTokenizerFast:
    """A fresh byte-level tokenizer with that chat template."""
    tokenizer = _byte_bpe(trim=False, chat=True)
    tokenizer.chat_template = template
    return tokenizer


def _byte_bpe(*, trim: bool, chat: bool) -> PreTrainedTokenizerFast:
    special = [BOS, EOS] + (["<|user|>", "<|assistant|>"] if chat else [])
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _train(tokenizer, trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet))
    begin = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    parts: list[Any] = [processors.ByteLevel(trim_offsets=trim), begin]
    tokenizer.post_processor = processors.Sequence(parts)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, model_max_length=64)
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def _words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    _train(tokenizer, trainers.WordLevelTrainer(vocab_size=100_000, special_tokens=["[UNK]"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def _pieces() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _train(tokenizer, trainers.WordPieceTrainer(vocab_size=900, special_tokens=["[UNK]", "[CLS]", "[SEP]"]))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def _unigram() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    _train(tokenizer, trainers.UnigramTrainer(vocab_size=800, special_tokens=special, unk_token="<unk>"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _spanning() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"]
    _train(tokenizer, trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=["\n", "\n\n"]))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _train(tokenizer: Tokenizer, trainer: Any) -> None:
    trainer.show_progress = False
    tokenizer.train_from_iterator(corpus(), trainer)
