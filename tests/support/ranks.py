"""One of two processes that sample parts of one request together: python -m support.ranks RANK FOLDER

It writes what it decided to FOLDER/RANK.json, and the last sample beside it.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import forecache as fc
from support.small import small_dit
from support.tiny import TINY, normal

STEPS = 12
TIMES = tuple(range(990, 0, -82))[:STEPS]
RULES = {
    "easycache": (fc.easycache(0.3, first=2), "branches"),
    "fbcache": (fc.fbcache(0.3), "stack"),
    "teacache": (fc.teacache(0.3), "branches"),
}
SPEEDS = (0.05, 0.3)


@torch.no_grad()
def halves(which, method, level, group=None):
    """The samples of these halves of a batch of two, each with a speed of its own, and what was decided."""
    model = small_dit(3)
    x = normal(2, 4, 8, 8)[list(which)]
    speeds = torch.tensor(SPEEDS)[list(which)].view(-1, 1, 1, 1)
    labels = torch.tensor([1, 2])[list(which)]
    with fc.apply(model, method, num_steps=STEPS, level=level, process_group=group) as session:
        for time in TIMES:
            x = x - speeds * model(x, timestep=torch.full((len(x),), time), class_labels=labels).sample[:, :4]
    return x, session.decided().provenance["decided"]


def flux(parallel):
    """A sample of a tiny FLUX whose tokens two processes share, or one process has; and what was decided."""
    tiny = TINY["FLUX.1"]
    model = tiny.model()
    if parallel:
        from diffusers import ContextParallelConfig

        torch.accelerator.device_count = lambda: 1  # diffusers counts accelerators, and a CPU is none
        torch._C._get_accelerator = lambda *_: torch.device("cpu")
        model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    x = normal(*tiny.shape)
    with fc.apply(model, fc.fbcache(0.4), num_steps=STEPS, level="stack") as session, torch.no_grad():
        for time in TIMES:
            inputs = tiny.inputs(x, time)
            inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"][:, :4]
            inputs["txt_ids"] = inputs["txt_ids"][:4]
            x = x - 0.1 * model(**inputs, return_dict=False)[0]
    return x, session.decided().provenance["decided"]


def main():
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    record = {}
    for name, (method, level) in RULES.items():
        for kind, group in (("together", dist.group.WORLD), ("apart", None)):
            sample, record[f"{name} {kind}"] = halves([rank], method, level, group)
            torch.save(sample, folder / f"{name} {kind} {rank}.pt")
    sample, record["FLUX"] = flux(parallel=True)
    torch.save(sample, folder / f"FLUX {rank}.pt")
    (folder / f"{rank}.json").write_text(json.dumps(record))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
