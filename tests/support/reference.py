"""Cached sampling of a DiT written out by hand, as the papers describe it. It knows nothing of the library.

B batch, N tokens, D width. A *rule* decides what one branch emits at one step:
``rule(memory, step, compute) -> feature``, where ``memory`` is a dict that belongs to this (block, branch) alone, and
``memory["branch"]`` says which one it is: (depth, "attn" or "mlp").
"""

from collections import deque

import torch

TRAIN_STEPS = 1000


# ---- sampling -------------------------------------------------------------------------------------------------------


def timesteps(num_steps):
    """Evenly spaced timesteps, the noisiest first."""
    stride = TRAIN_STEPS // num_steps
    return [index * stride + 1 for index in reversed(range(num_steps))]


@torch.no_grad()
def ddim(predict, noise, num_steps, guidance=1.5):
    """DDIM with eta = 0, v-prediction on linear betas, guidance pair in one call.

    predict(x_2B, t_2B, step) gives (2B, C or 2C, H, W) for the batch [cond; uncond]; channels after C are ignored.
    """
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, TRAIN_STEPS, dtype=torch.float64), 0)
    times = timesteps(num_steps)
    x = noise
    for step, time in enumerate(times):
        t = torch.full((2 * len(x),), time)
        output = predict(torch.cat([x, x]), t, step)[:, : x.shape[1]]
        cond, uncond = output.chunk(2)
        v = uncond + guidance * (cond - uncond)
        a = alpha_bar[time].item()
        a_next = alpha_bar[times[step + 1]].item() if step + 1 < num_steps else 1.0
        clean = a**0.5 * x - (1 - a) ** 0.5 * v
        epsilon = a**0.5 * v + (1 - a) ** 0.5 * x
        x = a_next**0.5 * clean + (1 - a_next) ** 0.5 * epsilon
    return x


def cached(forward, model, labels, rule):
    """A ``predict`` for `ddim` in which every branch of every block is emitted by ``rule``."""
    memories = {}

    def predict(x, t, step):
        def emit(key, compute):
            return rule(memories.setdefault(key, {"branch": key}), step, compute)

        return forward(model, x, t, labels, emit)

    return predict


# ---- models, block by block -----------------------------------------------------------------------------------------


def diffusers_dit(model, x, t, labels, emit):
    """A diffusers DiT by hand, from latents (B, C, H, W) to latents; class_labels (B,), timestep (B,)."""
    height, width = (side // model.config.patch_size for side in x.shape[-2:])
    x_BND = model.pos_embed(x)
    for depth, block in enumerate(model.transformer_blocks):
        x_BND = _diffusers_block(block, depth, x_BND, (t, labels), emit)
    conditioning = model.transformer_blocks[0].norm1.emb(t, labels, hidden_dtype=x_BND.dtype)
    shift, scale = model.proj_out_1(torch.nn.functional.silu(conditioning)).chunk(2, dim=1)
    x_BND = model.proj_out_2(model.norm_out(x_BND) * (1 + scale[:, None]) + shift[:, None])
    return unpatchify(x_BND, height, width, model.config.patch_size)


def _diffusers_block(block, depth, x_BND, condition, emit):
    norm = block.norm1
    c_BD = norm.emb(*condition, hidden_dtype=x_BND.dtype)
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = norm.linear(norm.silu(c_BD)).chunk(6, dim=1)
    h_BND = modulate(norm.norm(x_BND), shift_a, scale_a)

    def compute():
        return block.attn1(h_BND)

    compute.received = lambda: received(block.attn1, h_BND)
    y_BND = x_BND + gate_a[:, None] * emit((depth, "attn"), compute)
    mlp = emit((depth, "mlp"), lambda: block.ff(modulate(block.norm3(y_BND), shift_m, scale_m)))
    return y_BND + gate_m[:, None] * mlp


def facebook_dit(model, x, t, labels, emit):
    """A DiT in the layout of facebookresearch/DiT by hand."""
    side = x.shape[-1] // model.patch_size
    c_BD = model.t_embedder(t) + model.y_embedder(labels, False)
    x_BND = model.x_embedder(x) + model.pos_embed
    for depth, block in enumerate(model.blocks):
        x_BND = _facebook_block(block, depth, x_BND, c_BD, emit)
    return unpatchify(model.final_layer(x_BND, c_BD), side, side, model.patch_size)


def pixart(model, x, t, text, emit):
    """A diffusers PixArt by hand; text: what the caption's encoder gives (B, M, C), and its mask (B, M)."""
    states, mask = text
    height, width = (side // model.config.patch_size for side in x.shape[-2:])
    x_BND = model.pos_embed(x)
    time_B6D, embedded_BD = model.adaln_single(t, hidden_dtype=x_BND.dtype)
    text_BMD = model.caption_projection(states)
    bias_B1M = (1 - mask.to(x.dtype))[:, None] * -10000.0
    for depth, block in enumerate(model.transformer_blocks):
        x_BND = _pixart_block(block, depth, x_BND, (time_B6D, text_BMD, bias_B1M), emit)
    shift, scale = (model.scale_shift_table[None] + embedded_BD[:, None]).unbind(1)
    x_BND = model.proj_out(modulate(model.norm_out(x_BND), shift, scale))
    return unpatchify(x_BND, height, width, model.config.patch_size)


def _pixart_block(block, depth, x_BND, condition, emit):
    time_B6D, text_BMD, bias_B1M = condition
    table = block.scale_shift_table + time_B6D.unflatten(1, (6, -1))
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = table.unbind(1)
    h_BND = modulate(block.norm1(x_BND), shift_a, scale_a)

    def compute():
        return block.attn1(h_BND)

    compute.received = lambda: received(block.attn1, h_BND)
    y_BND = x_BND + gate_a[:, None] * emit((depth, "attn"), compute)
    cross = emit((depth, "cross"), lambda: block.attn2(y_BND, text_BMD, bias_B1M))
    z_BND = y_BND + cross
    mlp = emit((depth, "mlp"), lambda: block.ff(modulate(block.norm2(z_BND), shift_m, scale_m)))
    return z_BND + gate_m[:, None] * mlp


def received(attention, h_BND):
    """What every token receives: the columns of the attention maps summed, mean over heads."""
    batch, tokens, width = h_BND.shape
    q, k = (
        each(h_BND).reshape(batch, tokens, attention.heads, width // attention.heads)
        for each in (attention.to_q, attention.to_k)
    )
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / (width // attention.heads) ** 0.5
    return torch.softmax(logits, -1).sum(2).mean(1)


def _facebook_block(block, depth, x_BND, c_BD, emit):
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.adaLN_modulation(c_BD).chunk(6, dim=1)
    attention = emit((depth, "attn"), lambda: block.attn(modulate(block.norm1(x_BND), shift_a, scale_a)))
    y_BND = x_BND + gate_a[:, None] * attention
    mlp = emit((depth, "mlp"), lambda: block.mlp(modulate(block.norm2(y_BND), shift_m, scale_m)))
    return y_BND + gate_m[:, None] * mlp


def modulate(x_BND, shift_BD, scale_BD):
    return x_BND * (1 + scale_BD[:, None]) + shift_BD[:, None]


def unpatchify(x_BNP, height, width, patch):
    """Tokens (B, height * width, patch * patch * C) to images (B, C, height * patch, width * patch)."""
    batch = x_BNP.shape[0]
    x = x_BNP.reshape(batch, height, width, patch, patch, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, height * patch, width * patch)


# ---- rules: what a branch emits -------------------------------------------------------------------------------------


def front(num_steps, interval):
    """The computed steps of the GOC and EOC papers' phase."""
    return {c for c in range(num_steps) if c % interval == 0}


def end(num_steps, interval):
    """The computed steps of FORA's released code."""
    return {0} | {c for c in range(num_steps) if (num_steps - 1 - c) % interval == 0}


def everything(memory, step, compute):
    """No cache."""
    return compute()


def fora(computed):
    """The last computed feature."""

    def rule(memory, step, compute):
        if step in computed:
            memory["feature"] = compute()
        return memory["feature"]

    return rule


def goc_emitted(computed, eta, corrected=None):
    """The paper's queue, literally: the last two things emitted, whatever they were (for intervals of 2)."""

    def rule(memory, step, compute):
        queue = memory.setdefault("queue", deque(maxlen=2))
        if step in computed:
            feature = compute()
        elif len(queue) == 2 and (corrected is None or step in corrected):
            feature = queue[-1] + eta * (queue[-1] - queue[-2])
        else:
            feature = queue[-1]
        queue.append(feature)
        return feature

    return rule


def goc_emitted_frozen(computed, eta):
    """The queue as it stood at the last computed call: (computed feature, what the call before it emitted).

    eta is divided by the number of calls that were skipped before the computed one.
    """

    def rule(memory, step, compute):
        if step in computed:
            memory["pair"] = (compute(), memory.get("emitted"), skipped_before(step, computed))
            feature = memory["pair"][0]
        else:
            newest, before, skipped = memory["pair"]
            feature = newest if before is None else newest + eta / skipped * (newest - before)
        memory["emitted"] = feature
        return feature

    return rule


def skipped_before(step, computed):
    """How many calls in a row were skipped just before this one, at least 1."""
    count = 0
    while step - 1 - count >= 0 and step - 1 - count not in computed:
        count += 1
    return max(1, count)


def goc_computed(computed, eta, corrected=None):
    """A queue of the last two computed features."""

    def rule(memory, step, compute):
        queue = memory.setdefault("queue", deque(maxlen=2))
        if step in computed:
            queue.append(compute())
            return queue[-1]
        if len(queue) == 2 and (corrected is None or step in corrected):
            return queue[-1] + eta * (queue[-1] - queue[-2])
        return queue[-1]

    return rule


def taylorseer(computed, order):
    """Derivatives by finite differences at the computed steps, kept as tensors; expansion in between."""

    def rule(memory, step, compute):
        if step in computed:
            old = memory.get("derivatives", [])
            new = [compute()]
            for lower in range(min(order, len(old))):
                new.append((new[lower] - old[lower]) / (step - memory["at"]))
            memory["derivatives"], memory["at"] = new, step
            return new[0]
        distance, total, factor = step - memory["at"], 0.0, 1.0
        for power, derivative in enumerate(memory["derivatives"]):
            factor = factor * distance / power if power else 1.0
            total = total + factor * derivative
        return total

    return rule


def by_branch(rules):
    """A rule for each branch: {(depth, kind): rule}."""

    def rule(memory, step, compute):
        return rules[memory["branch"]](memory, step, compute)

    return rule


def goc_on_l2c(computed, eta):
    """GOC where branches are skipped one by one, {(depth, kind): the steps it is computed at}.

    A gradient is formed for a block only where both of its branches are skipped and have two entries in the queue.
    """
    both = {
        depth: {c for c in range(TRAIN_STEPS) if c not in computed[depth, "attn"] and c not in computed[depth, "mlp"]}
        for depth, _ in computed
    }
    return by_branch({key: goc_emitted(steps, eta, corrected=both[key[0]]) for key, steps in computed.items()})


# ---- corrections: averages (T, N, D), or (T, D), by branch -----------------------------------------------------------


def eoc(computed, averages, theta, form="relative", judge="all"):
    """Reuse, with a cache that every correction overwrites; the averages go the same way beside it.

    judge: "all", "prior" (only where the averages come closer to the truth), or the steps.
    """

    def rule(memory, step, compute):
        average = averages[memory["branch"]]
        if step in computed:
            memory["cache"], memory["mean"], memory["at"] = compute(), average[step], step
            return memory["cache"]
        if form == "relative":
            factor, drift = 1 + theta * (average[step] - average[step - 1]), 0.0
        else:
            trends = [average[c] - average[c - 1] for c in range(memory["at"] + 1, step + 1)]
            factor, drift = 1.0, theta * sum(trends)
        cache, mean = memory["cache"] * factor + drift, memory["mean"] * factor + drift
        better = (average[step] - mean).abs().sum() < (average[step] - memory["mean"]).abs().sum()
        if better if judge == "prior" else judge == "all" or step in judge:
            memory["cache"], memory["mean"], memory["at"] = cache, mean, step
        return memory["cache"]

    return rule


def eoc_on(forecast, computed, averages, theta, emitted=False):
    """A forecast, plus theta times what the same forecast misses on the averages.

    emitted: the forecast has a queue of what was emitted, which gets the corrected estimate.
    """

    def rule(memory, step, compute):
        average = averages[memory["branch"]]
        features, means = (memory.setdefault(name, {}) for name in ("features", "means"))
        feature, mean = forecast(features, step, compute), forecast(means, step, lambda: average[step])
        if step in computed:
            return feature
        missed = theta * (average[step] - mean)
        for own, value in ((features, feature + missed), (means, mean + missed)):
            if emitted:
                own["queue"][-1] = value
        return feature + missed

    return rule


def eoc_on_goc_frozen(computed, averages, theta, eta):
    """GOC forms its gradient once a gap; each correction overwrites what the one before left."""

    def rule(memory, step, compute):
        average = averages[memory["branch"]]
        if step in computed:
            memory["start"] = (compute(), average[step]), memory.get("last"), skipped_before(step, computed)
            memory["last"] = memory["start"][0]
            return memory["last"][0]
        new, old, skipped = memory["start"]
        begins = step - 1 in computed
        if begins and old is not None:
            memory["last"] = tuple(a + eta / skipped * (a - b) for a, b in zip(new, old, strict=True))
        if old is None:  # the first gap has nothing to form a gradient of: reuse along the trend
            missed = theta * (average[step] - average[step - 1])
        else:
            missed = theta * (average[step] - memory["last"][1])
        memory["last"] = tuple(each + missed for each in memory["last"])
        return memory["last"][0]

    return rule


def goc_on(computed, eta, opened):
    """GOC on any base, {(depth, kind): computed steps}: in a gap the queue stands as it was at the last computed call.

    Plain reuse at steps that are not in ``opened``, and where only one of a block's branches is skipped.
    """

    def rule(memory, step, compute):
        depth, kind = memory["branch"]
        if step in computed[depth, kind]:
            memory["pair"] = compute(), memory.get("emitted"), skipped_before(step, computed[depth, kind])
            memory["emitted"] = memory["pair"][0]
            return memory["emitted"]
        newest, before, skipped = memory["pair"]
        whole = step not in computed[depth, "attn"] and step not in computed[depth, "mlp"]
        formed = whole and step in opened and before is not None
        memory["emitted"] = newest + eta / skipped * (newest - before) if formed else newest
        return memory["emitted"]

    return rule


def selective(computed, partial, share, score, *, age=0.0, bonus=None, order=0, kinds=("mlp",)):
    """Some tokens of the MLPs at the steps ``partial(depth)``; reuse, or a Taylor expansion of order 1, elsewhere.

    score(attention) ranks tokens by what the attention of the block gave out in this call; "received" by what they
    received when it was last computed. bonus: (factor, rows, columns) for the best token of each 2 x 2 patch. kinds:
    the branches that have partial cells.
    """
    blocks = {}

    def expansion(memory, step):
        if order == 0 or "older" not in memory:
            return memory["newest"]
        since, apart = step - memory["at"], memory["at"] - memory["older_at"]
        return memory["newest"] + since / apart * (memory["newest"] - memory["older"])

    def choose(block, memory, tokens):
        scores = block["received"] if score == "received" else score(block["attention"])
        if age:
            scores = scores / scores.norm(dim=1, keepdim=True) + age * memory["ages"]
        scores = scores.clone()
        if bonus is not None:
            factor, rows, columns = bonus
            for sample in scores:
                for y in range(0, rows, 2):
                    for x in range(0, columns, 2):
                        patch = [r * columns + c for r in (y, y + 1) for c in (x, x + 1) if r < rows and c < columns]
                        best = max(patch, key=lambda each: sample[each].item())
                        sample[best] *= factor
        return scores.argsort(dim=1, descending=True)[:, : int(share * tokens + 1e-9)]

    def rule(memory, step, compute):
        depth, kind = memory["branch"]
        block = blocks.setdefault(depth, {})
        if step in computed:
            feature = compute()
            if "newest" in memory:
                memory["older"], memory["older_at"] = memory["newest"], memory["at"]
            memory.update(newest=feature, at=step, found=0.0, ages=torch.zeros(feature.shape[:2]))
            if kind == "attn" and score == "received":
                block["received"] = compute.received()
        else:
            feature = expansion(memory, step) + memory["found"]
            if kind in kinds and step in partial(depth):
                truth, chosen = compute(), choose(block, memory, feature.shape[1])
                feature = feature.clone()
                memory["ages"] += 1
                for sample, tokens in enumerate(chosen):
                    feature[sample, tokens] = truth[sample, tokens]
                    memory["ages"][sample, tokens] = 0
                memory["found"] = feature - expansion(memory, step)
        if kind == "attn":
            block["attention"] = feature
        return feature

    return rule


def amended(rule, table, share):
    """Any rule, and in every MLP that it estimates the longest tokens of the attention computed after all.

    What they turn out to be beside the rule's estimate is added to its next ones, until the MLP is computed again.
    """
    attentions = {}

    def whole(memory, step, compute):
        depth, kind = memory["branch"]
        feature = rule(memory, step, compute)
        if kind == "attn":
            attentions[depth] = feature
        elif step in table[depth, kind]:
            memory["found"] = 0.0
        else:
            truth, estimate = compute(), feature + memory["found"]
            order = attentions[depth].norm(dim=-1).argsort(dim=1, descending=True)
            chosen = torch.zeros(estimate.shape[:2], dtype=torch.bool)
            chosen.scatter_(1, order[:, : int(share * estimate.shape[1])], True)
            amended = torch.where(chosen[..., None], truth, estimate)
            memory["found"] = amended - feature
            memory["emitted"] = feature = amended
        return feature

    return whole
