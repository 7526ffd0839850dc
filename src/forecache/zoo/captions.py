"""What digits-text is asked: captions of two digits side by side, and the tokenizer that knows their words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forecache.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Sequence

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")
TEMPLATES = (
    "{left} left of {right}",
    "{right} right of {left}",
    "{left} and {right}",
    "{left} to the left of {right}",
    "{right} to the right of {left}",
    "{left} on the left and {right} on the right",
)
"""Ways to ask for two digits; where they are equal, "two fives" is one more."""
SPECIAL = ("<pad>", "</s>", "<unk>")
LENGTH = 12
"""Tokens of every caption in training, `</s>` and padding included; the longest caption takes all of them."""


def a(digit: int) -> str:
    """The digit's name with its article."""
    return f"{'an' if digit == 8 else 'a'} {DIGITS[digit]}"


def captions(left: int, right: int) -> tuple[str, ...]:
    """Every caption of a picture with these digits; the first is the one that pictures are asked for by."""
    asked = tuple(template.format(left=a(left), right=a(right)) for template in TEMPLATES)
    return (*asked, f"two {PLURALS[left]}") if left == right else asked


def pairs(count: int) -> list[tuple[int, int]]:
    """``count`` pairs of (left, right) digits that go through all hundred, every digit on both sides in each ten."""
    return [(index % 10, (index + index // 10) % 10) for index in range(count)]


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


def tokens(tokenizer: Any, texts: Sequence[str], length: int = LENGTH) -> tuple[Any, Any]:
    """Token ids and mask (B, length) of the texts, int64; an empty text is `</s>` alone."""
    out = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return out.input_ids, out.attention_mask
