"""The captions of digits-text: two digits side by side, in several wordings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
"""Wordings for two digits; equal ones have one more, such as "two fives"."""
LENGTH = 12
"""Tokens of every caption in training, with `</s>` and padding; the length of the longest caption."""


def a(digit: int) -> str:
    """The digit's name with its article."""
    return f"{'an' if digit == 8 else 'a'} {DIGITS[digit]}"


def captions(left: int, right: int) -> tuple[str, ...]:
    """Every caption of an image of two digits; the first is the default prompt."""
    texts = tuple(template.format(left=a(left), right=a(right)) for template in TEMPLATES)
    return (*texts, f"two {PLURALS[left]}") if left == right else texts


def pairs(count: int) -> list[tuple[int, int]]:
    """``count`` pairs of (left, right) digits, which cycle through all hundred; ten in a row have every digit twice."""
    return [(index % 10, (index + index // 10) % 10) for index in range(count)]


def tokens(tokenizer: Any, texts: Sequence[str], length: int = LENGTH) -> tuple[Any, Any]:
    """Token ids and mask (B, length) of the texts, int64; an empty text is `</s>` alone."""
    out = tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return out.input_ids, out.attention_mask
