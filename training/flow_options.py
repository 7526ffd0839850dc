"""The command line of `emoji.py` and `moving_digits.py`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def parser(description: str | None, defaults: Mapping[str, Any]) -> tuple[argparse.ArgumentParser, Any]:
    """A parser with the subcommand `train`, and the place for others."""
    words = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = words.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="begin a run, or go on with the one in the folder")
    add_common(command, defaults)
    command.add_argument("--init", type=Path, default=None, help="checkpoint that a new folder goes on from")
    command.add_argument("--images", type=int, default=defaults["images"], help="images (or clips) to see in all")
    command.add_argument("--batch", type=int, default=defaults["batch"])
    command.add_argument("--lr", type=float, default=defaults["lr"], help="highest learning rate")
    command.add_argument("--warmup", type=int, default=100, help="steps of the learning rate's rise")
    command.add_argument("--cooldown", type=float, default=0.25, help="part of the run in which it falls to zero")
    command.add_argument("--weight-decay", type=float, default=0.0)
    command.add_argument("--prompt-dropout", type=float, default=0.1, help="part of the prompts left out")
    command.add_argument("--log", type=int, default=20, help="steps between two lines")
    command.add_argument("--checkpoint", type=int, default=defaults["checkpoint"], help="steps between two checkpoints")
    command.add_argument("--bf16", action="store_true", help="compute in bfloat16; the optimiser keeps float32")
    command.add_argument("--compile", action="store_true", help="use torch.compile")
    return words, commands


def add_common(command: argparse.ArgumentParser, defaults: Mapping[str, Any]) -> None:
    """The options of every subcommand."""
    command.add_argument("--data", type=Path, default=Path(defaults["data"]), help="default: %(default)s")
    command.add_argument("--out", type=Path, default=Path(defaults["out"]), help="folder of the run (%(default)s)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--threads", type=int, default=2)


def add_sample(commands: Any, defaults: Mapping[str, Any]) -> argparse.ArgumentParser:
    """The subcommand `sample`."""
    command = commands.add_parser("sample", help="draw a grid of pictures with the averaged weights")
    add_common(command, defaults)
    add_sampling(command, defaults)
    command.add_argument("--picture", type=Path, required=True, help="PNG to write")
    return command


def add_sampling(command: argparse.ArgumentParser, defaults: Mapping[str, Any]) -> None:
    """The options of whatever draws samples."""
    command.add_argument("--from", dest="start", type=Path, default=None, help="checkpoint; default: the run's")
    command.add_argument("--count", type=int, default=defaults["count"])
    command.add_argument("--steps", type=int, default=30)
    command.add_argument("--guidance", type=float, default=defaults["guidance"])
    command.add_argument("--shift", type=float, default=defaults["shift"], help="of the scheduler")


def add_shrink(commands: Any, defaults: Mapping[str, Any]) -> None:
    """The subcommand `shrink`."""
    command = commands.add_parser("shrink", help="write the run's checkpoint small enough for the repository")
    add_common(command, defaults)
    command.add_argument("--to", type=Path, required=True, help="safetensors file to write")
