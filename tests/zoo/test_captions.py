"""Captions say one picture each, and the tokenizer knows every word of them."""

import pytest
from transformers import PreTrainedTokenizerFast

from forecache.zoo import captions
from training import tokenizer


def test_every_caption_asks_for_one_pair_alone():
    asked = {}
    for left in range(10):
        for right in range(10):
            for text in captions.captions(left, right):
                assert asked.setdefault(text, (left, right)) == (left, right), text
    assert len(set(asked.values())) == 100
    assert asked["a seven left of a three"] == asked["a three right of a seven"] == (7, 3)
    assert asked["an eight and a zero"] == (8, 0)
    assert asked["two sixes"] == (6, 6)


@pytest.mark.parametrize("count", [1, 10, 73, 100, 250])
def test_pairs_go_through_every_digit_on_both_sides(count):
    found = captions.pairs(count)
    assert len(found) == count
    for first in range(0, count - 9, 10):
        assert sorted(left for left, _ in found[first : first + 10]) == list(range(10))
        assert sorted(right for _, right in found[first : first + 10]) == list(range(10))
    assert len(set(found)) == min(count, 100)


def test_the_tokenizer_knows_every_word_and_is_loaded_from_a_file(tmp_path):
    made = tokenizer.build_tokenizer()
    made.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    pad, end, unknown = (made.convert_tokens_to_ids(word) for word in tokenizer.SPECIAL)
    assert (pad, end) == (0, 1), "T5's numbers, which its configuration holds"
    longest = 0
    for pair in captions.pairs(100):
        texts = captions.captions(*pair)
        ids, mask = captions.tokens(loaded, texts)
        assert ids.tolist() == captions.tokens(made, texts)[0].tolist()
        for text, row, kept in zip(texts, ids.tolist(), mask.tolist(), strict=True):
            words = text.split()
            assert row == [*(tokenizer.words().index(word) for word in words), end] + [pad] * (11 - len(words))
            assert kept == [1] * (len(words) + 1) + [0] * (11 - len(words))
            assert unknown not in row
            longest = max(longest, len(words) + 1)
    assert longest == captions.LENGTH


def test_other_words_are_unknown_and_nothing_is_an_end_alone():
    ids, mask = captions.tokens(tokenizer.build_tokenizer(), ["A purple SEVEN", ""])
    seven = tokenizer.words().index("seven")
    assert ids[0, :4].tolist() == [tokenizer.words().index("a"), 2, seven, 1]
    assert (ids[1].tolist(), mask[1].tolist()) == ([1] + [0] * 11, [1] + [0] * 11)
