"""The command line of `emoji.py` and `moving_digits.py`."""

from __future__ import annotations

import argparse
import json
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


def judge_parser(
    description: str | None, defaults: Mapping[str, Any], *, seen: tuple[str, int, str], lr: float, count: int
) -> tuple[argparse.ArgumentParser, Any]:
    """A parser of a judge with the subcommands `train`, from nothing, and `judge`, of a checkpoint's samples.

    seen: name, default and help of the option that says how much it sees. count: samples that it judges.
    """
    words = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = words.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="train a judge from nothing")
    command.add_argument("--data", type=Path, default=Path(defaults["data"]), help="default: %(default)s")
    command.add_argument("--to", type=Path, required=True, help="safetensors file to write")
    command.add_argument(seen[0], type=int, default=seen[1], help=seen[2])
    command.add_argument("--batch", type=int, default=64)
    command.add_argument("--lr", type=float, default=lr)
    command.add_argument("--log", type=int, default=100, help="steps between two lines")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--threads", type=int, default=2)
    command = commands.add_parser("judge", help="judge samples of a checkpoint")
    add_common(command, defaults)
    command.add_argument("--judge", type=Path, required=True, help="the file that train wrote")
    add_sampling(command, {**defaults, "count": count})
    command.add_argument("--write", type=Path, default=None, help="JSON file for the figures")
    return words, commands


def tell(args: argparse.Namespace, step: int, figures: Mapping[str, float]) -> None:
    """Print what a judge found in the samples of a checkpoint, and write it to ``--write``."""
    names = ("count", "steps", "guidance", "shift")
    record = {"step": step, **{name: getattr(args, name) for name in names}, **figures}
    record["samples"] = record.pop("count")
    print(json.dumps(record, indent=2))
    if args.write is not None:
        args.write.write_text(json.dumps(record, indent=2) + "\n")


def add_shrink(commands: Any, defaults: Mapping[str, Any]) -> None:
    """The subcommand `shrink`."""
    command = commands.add_parser("shrink", help="write the run's checkpoint small enough for the repository")
    add_common(command, defaults)
    command.add_argument("--to", type=Path, required=True, help="safetensors file to write")
