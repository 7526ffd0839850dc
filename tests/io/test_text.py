"""Values as text."""

import pytest
import torch

from forecache.io.text import dtype_name, mib, short


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "'x'"),
        ("x" * 10**7, "'" + "x" * 56 + "..."),
        (b"y" * 10**7, "b'" + "y" * 55 + "..."),
        ([0] * 10**6, "[" + "0, " * 18 + "0,..."),
        (dict.fromkeys(range(10**5), 0), None),
        (None, "None"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_a_value_takes_at_most_sixty_characters(value, text):
    assert len(short(value)) <= 60
    assert text is None or short(value)[:40] == text[:40]


def test_bytes_in_mib():
    assert mib(2**20) == "1.0 MiB"
    assert mib(1536 * 2**20 + 2**19) == "1,536.5 MiB"
    assert mib(2**20 * 0.126, 2) == "0.13 MiB"


def test_a_dtype_has_its_name_alone():
    assert [dtype_name(dtype) for dtype in (torch.float32, torch.bfloat16)] == ["float32", "bfloat16"]
