"""Training of the digits classifier, and its reference statistics.

    python -m training.judge --data mnist.npz --export DIR

Writes `classifier.safetensors` (fp16), `classifier.json` (the record), and the features of the
10,000 test images by the shipped fp16 weights: `reference.safetensors` (mean and covariance of the pooled features) and
`reference-features.safetensors` (those of every second image in fp16, mean and covariance of the spatial ones). With
`--references-only` the shipped classifier is kept, and only these two files are written.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from forecache.evaluate import Images, extract
from forecache.zoo.classifier import SIZE, DigitClassifier, digits_extractor
from forecache.zoo.digits import load_classifier
from training import mnist


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images shifted by up to two pixels: generated digits need not be centred as those of MNIST."""
    edge = 2
    padded = pad(images, (edge,) * 4, value=-1.0)
    rows, columns = torch.randint(2 * edge + 1, (2, len(images), 1), generator=generator)
    index = torch.arange(SIZE)
    batch = torch.arange(len(images))[:, None, None]
    return padded[batch, 0, (rows + index)[:, :, None], (columns + index)[:, None, :]][:, None]


@torch.no_grad()
def accuracy(model: DigitClassifier, split: mnist.Split) -> float:
    hits = [model(x).argmax(1) == y for x, y in zip(split.images.split(500), split.labels.split(500), strict=True)]
    return torch.cat(hits).float().mean().item()


def train(train_split: mnist.Split, *, epochs: int, batch: int, lr: float, seed: int) -> DigitClassifier:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = DigitClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
    total = epochs * (len(train_split) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=total)
    for epoch in range(epochs):
        order = torch.randperm(len(train_split), generator=generator)
        losses = []
        for index in order.split(batch)[: len(train_split) // batch]:
            loss = cross_entropy(model(shifted(train_split.images[index], generator)), train_split.labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        print(f"epoch {epoch + 1} of {epochs}: loss {torch.stack(losses).mean():.4f}", flush=True)
    return model.eval()


@torch.no_grad()
def write_references(split: mnist.Split, folder: Path, model: DigitClassifier) -> None:
    """Write the moments and features of a split in the layers of the extractor "digits"."""
    extractor = digits_extractor(model)
    pixels = ((split.images + 1) * 127.5).round().to(torch.uint8)
    features = extract(Images(pixels), extractor, ("pool", "spatial"), batch=500)
    pool, spatial = features.moments("pool"), features.moments("spatial")
    count = torch.tensor(features.count)
    save_file(
        {"mean": pool.mean.float(), "covariance": pool.covariance.float().contiguous(), "count": count},
        folder / "reference.safetensors",
    )
    tensors = {
        "pool": features.layer("pool")[::2].half().contiguous(),
        "spatial_mean": spatial.mean.float(),
        "spatial_covariance": spatial.covariance.float().contiguous(),
    }
    save_file(tensors, folder / "reference-features.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=str, default=None, help="mnist.npz; without it, the hub dataset ylecun/mnist")
    parser.add_argument("--export", type=Path, required=True, help="folder to write to")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--references-only", action="store_true", help="keep the shipped classifier")
    args = parser.parse_args()
    train_split, test_split = mnist.load(args.data)
    args.export.mkdir(parents=True, exist_ok=True)
    if args.references_only:
        write_references(test_split, args.export, load_classifier())
        return
    started = time.perf_counter()
    model = train(train_split, epochs=args.epochs, batch=args.batch, lr=args.lr, seed=args.seed)
    seconds = time.perf_counter() - started
    model = model.half().float()  # judge with the weights that are shipped
    score = accuracy(model, test_split)
    write_references(test_split, args.export, model)
    save_file(
        {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()},
        args.export / "classifier.safetensors",
    )
    record = {
        "command": "python -m training.judge",
        "settings": {"epochs": args.epochs, "batch": args.batch, "lr": args.lr, "seed": args.seed},
        "test_accuracy": score,
        "seconds": round(seconds),
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {"torch": torch.__version__},
    }
    (args.export / "classifier.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"test accuracy {score:.4f}")


if __name__ == "__main__":
    main()
