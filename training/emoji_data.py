"""Emoji as training data: 32x32 colour pictures, what they are asked for by, and those that are held out."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

SIZE = 32
STYLES = ("noto", "twemoji")
TONES = {
    "1F3FB": "light",
    "1F3FC": "medium light",
    "1F3FD": "medium",
    "1F3FE": "medium dark",
    "1F3FF": "dark",
}
ALIASES = {
    "+1": "thumbs up",
    " 1": "thumbs down",
    "v": "victory hand",
    "hankey": "pile of poo",
    "the horns": "sign of the horns",
    "facepunch": "oncoming fist",
    "pray": "folded hands",
    "clap": "clapping hands",
    "wave": "waving hand",
    "muscle": "flexed biceps",
    "heart": "red heart",
    "grinning": "grinning face",
    "joy": "face with tears of joy",
    "sob": "loudly crying face",
    "cry": "crying face",
    "angry": "angry face",
    "heart eyes": "face with heart eyes",
    "sunglasses": "face with sunglasses",
    "cat": "cat face",
    "dog": "dog face",
    "apple": "red apple",
    "corn": "ear of corn",
    "fries": "french fries",
    "hotdog": "hot dog",
    "doughnut": "donut",
    "birthday": "birthday cake",
    "beer": "beer mug",
    "soccer": "soccer ball",
    "tennis": "tennis ball",
    "bike": "bicycle",
    "boat": "sailboat",
    "cop": "police officer",
    "santa": "santa claus",
    "hocho": "kitchen knife",
    "gun": "water pistol",
    "tv": "television",
    "iphone": "mobile phone",
    "mag": "magnifying glass",
    "bulb": "light bulb",
    "gem": "gem stone",
    "moneybag": "money bag",
    "tophat": "top hat",
    "shirt": "t shirt",
    "sunny": "sun",
    "moon": "waxing gibbous moon",
    "fist": "raised fist",
    "zap": "high voltage",
    "cn": "flag cn",
    "de": "flag de",
    "es": "flag es",
    "fr": "flag fr",
    "gb": "flag gb",
    "it": "flag it",
    "jp": "flag jp",
    "kr": "flag kr",
    "ru": "flag ru",
    "us": "flag us",
}
"""Other words for names that people would not type."""


@dataclass(frozen=True)
class Emoji:
    """Pictures (N, 3, 32, 32) in [-1, 1], and for each of them its name, subgroup, style and skin tones."""

    pictures: Tensor
    names: Sequence[str]
    subgroups: Sequence[str]
    styles: Sequence[str]
    tones: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def pick(self, indices: Sequence[int]) -> Emoji:
        """Some of them."""
        chosen = ([column[i] for i in indices] for column in (self.names, self.subgroups, self.styles, self.tones))
        return Emoji(self.pictures[list(indices)], *chosen)

    def split(self) -> tuple[Emoji, Emoji]:
        """Those for training, and those held out: one style of each tenth name, whatever the tone."""
        out = [held_out(name, style) for name, style in zip(self.names, self.styles, strict=True)]
        rows = range(len(self))
        return self.pick([i for i in rows if not out[i]]), self.pick([i for i in rows if out[i]])


def held_out(name: str, style: str) -> bool:
    """Whether a name's renderings in a style are kept from all training: a twentieth of each style's names."""
    return zlib.crc32(name.encode()) % 20 == STYLES.index(style)


def load(path: Path) -> Emoji:
    """All pictures of ``emoji32.npz``."""
    file = np.load(path)
    pictures = torch.from_numpy(file["x"]).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    return Emoji(pictures.contiguous(), *(file[key].tolist() for key in ("name", "subgroup", "style", "tone")))


def toned(tone: str) -> str:
    """Words for skin tones: "" for none, "dark skin tone" for one, "light and dark skin tones" for two."""
    if not tone:
        return ""
    words = [TONES[code] for code in tone.split("-")]
    return f"{words[0]} skin tone" if len(set(words)) == 1 else f"{' and '.join(words)} skin tones"


def caption(name: str, style: str = "", tone: str = "") -> str:
    """What a picture is asked for by, such as "noto waving hand medium dark skin tone"."""
    return " ".join(part for part in (style, name, toned(tone)) if part)


def names_of(name: str) -> tuple[str, ...]:
    """The name, and another one where there is one."""
    return (name, ALIASES[name]) if name in ALIASES else (name,)


def weights(emoji: Emoji) -> Tensor:
    """How often each picture is drawn (N): names alike, with skin tones a half more, a flag of a country half as often.

    Of the pictures of a name in a style the one without a tone comes as often as all others together.
    """
    tones: dict[tuple[str, str], int] = {}
    for name, style in zip(emoji.names, emoji.styles, strict=True):
        tones[name, style] = tones.get((name, style), 0) + 1
    out = []
    for name, style, tone, subgroup in zip(emoji.names, emoji.styles, emoji.tones, emoji.subgroups, strict=True):
        others = tones[name, style] - 1
        share = 1.0 if others == 0 else 0.75 if not tone else 0.75 / others
        out.append(share * (0.5 if subgroup == "country-flag" else 1.0))
    return torch.tensor(out)
