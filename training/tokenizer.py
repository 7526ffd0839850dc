"""The tokenizer of digits-text, built from the words of its captions."""

from __future__ import annotations

from typing import Any

from forecache.errors import MissingExtraError
from forecache.zoo.captions import LENGTH, captions

SPECIAL = ("<pad>", "</s>", "<unk>")


def words() -> list[str]:
    """The vocabulary: padding, end and unknown, then every word of every caption."""
    seen = {
        word for left in range(10) for right in range(10) for text in captions(left, right) for word in text.split()
    }
    return [*SPECIAL, *sorted(seen)]


def build_tokenizer() -> Any:
    """A word-level tokenizer (a transformers PreTrainedTokenizerFast): lower case, `</s>` at the end, as T5 has it."""
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise MissingExtraError("transformers", "diffusers", "The digits-text tokenizer") from error
    pad, end, unknown = SPECIAL
    vocabulary = {word: number for number, word in enumerate(words())}
    tokenizer: Any = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, vocabulary[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, eos_token=end, unk_token=unknown, model_max_length=LENGTH
    )
