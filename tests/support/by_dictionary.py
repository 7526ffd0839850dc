"""Cached sampling written out by hand: features in a dictionary. It knows nothing of the library but a plan's cells.

A feature is what a site gave out at a step; (lane, site, step) is its key.
"""

import functools
from contextlib import ExitStack, contextmanager

import torch

from support.random_models import TEXT_GATE, gate_of, normed


class UnplannedError(Exception):
    """A site that ran twice in a call, or not at all, or gave out no tensor: such a run has to be refused."""


class Dictionary:
    """Features by lane, site and step, and the rule by which a cell makes them.

    rows: the cells of every site's row, by name.
    step, lane: those of the call in progress.
    max_error: estimates that are farther from the newest feature fall back to it; None for no limit.
    rounded: dtype that features are kept in; None for their own.
    constants: the tensors that cells name.
    """

    def __init__(self, rows, max_error=None, rounded=None, constants=()):
        self.rows, self.max_error, self.rounded, self.constants = rows, max_error, rounded, dict(constants)
        self.features, self.ran = {}, set()
        self.step, self.lane = 0, None

    def begin(self, step, lane):
        self.step, self.lane, self.ran = step, lane, set()

    def end(self):
        if self.ran != set(self.rows):
            raise UnplannedError

    def site(self, name, compute, some=None):
        """What a site gives out: ``compute()``, or an estimate, in which ``some(indices)`` computes tokens."""
        if name in self.ran:
            raise UnplannedError
        self.ran.add(name)
        cell = self.rows[name][self.step]
        if self.is_by_itself(name):
            return compute()
        if cell.reads:
            feature = self.estimate(name, cell)
            if cell.tokens is not None:
                feature = self.partial(cell.tokens, feature, some)
        else:
            feature = compute()
        self.features[self.lane, name, self.step] = feature.clone()
        return feature

    def is_by_itself(self, name):
        """Whether the site is computed and nothing reads what it gives out."""
        row = self.rows[name]
        read = {step for cell in row for step, _ in cell.reads}
        scores = {cell.tokens.site for other in self.rows.values() for cell in other if cell.tokens is not None}
        return not row[self.step].reads and self.step not in read and name not in scores

    def estimate(self, name, cell):
        sources = [self.features[self.lane, name, step] for step, _ in cell.reads]
        if self.rounded is not None:
            sources = [source.to(self.rounded).to(source.dtype) for source in sources]
        wide = torch.promote_types(sources[0].dtype, torch.float32)
        total = sum(weight * source.to(wide) for source, (_, weight) in zip(sources, cell.reads, strict=True))
        if cell.gain is not None:
            total = total * (1 + self.constants[cell.gain].to(wide))
        if cell.shift is not None:
            total = total + self.constants[cell.shift].to(wide)
        total = total.to(sources[0].dtype)
        is_corrected = cell.gain is not None or cell.shift is not None
        if self.max_error is None or (len(sources) == 1 and cell.reads[0][1] == 1 and not is_corrected):
            return total
        newest = sources[max(range(len(sources)), key=lambda number: cell.reads[number][0])].to(wide)
        every = tuple(range(1, total.ndim))
        error = (total.to(wide) - newest).square().sum(every, keepdim=True).sqrt()
        near = error <= self.max_error * newest.square().sum(every, keepdim=True).sqrt()
        return torch.where(near, total, newest.to(total.dtype))

    def partial(self, tokens, feature, some):
        count = int(tokens.share * feature.shape[1] + 1e-9)
        if count == 0:
            return feature
        scores = self.features[self.lane, tokens.site, self.step].float().norm(dim=-1)
        chosen = scores.argsort(dim=1, descending=True)[:, :count]
        feature, truth = feature.clone(), some(chosen)
        for row, picks in enumerate(chosen):
            feature[row, picks] = truth[row].to(feature.dtype)
        return feature


def rows_of(plan):
    return {site.name: row for site, row in zip(plan.grid.sites, plan.rows, strict=True)}


@contextmanager
def forwards(pairs):
    """Modules with other forwards in this block."""
    with ExitStack() as stack:
        for module, forward in pairs:
            module.forward = forward
            stack.callback(vars(module).pop, "forward", None)
        yield


def as_modules(model, dictionary):
    """The forwards of sites that are modules."""

    def forward(name, own, *args, **kwargs):
        def compute():
            output = own(*args, **kwargs)
            if not isinstance(output, torch.Tensor):
                raise UnplannedError
            return output

        def some(indices):
            x = args[0]
            chosen = torch.stack([row[picks] for row, picks in zip(x, indices, strict=True)])
            return own(chosen, *args[1:], **kwargs)

        return dictionary.site(name, compute, some)

    for name in dictionary.rows:
        module = model.get_submodule(name)
        yield module, functools.partial(forward, name, module.forward)


def as_blocks(blocks, dictionary, numbers_of_streams):
    """The forwards of blocks that are one site each: what a block adds to its streams, copied before it runs.

    Streams of other widths or dimensions are parts of one feature, side by side, flat.
    """

    def forward(name, own, number_of_streams, *args, **kwargs):
        given = given_to(args, kwargs)
        streams = [given[stream] for stream in ("x", "text")[:number_of_streams]]
        outputs = []

        def compute():
            output = own(*args, **kwargs) if dictionary.is_by_itself(name) else None
            if output is not None:
                outputs.append(output)
                return None
            before = [stream.clone() for stream in streams]
            outputs.append(own(*args, **kwargs))
            after = outputs[0] if number_of_streams == 2 else (outputs[0],)
            if not all(isinstance(value, torch.Tensor) for value in after):
                raise UnplannedError
            added = [new - old for new, old in zip(after, before, strict=True)]
            return torch.cat([part.flatten(1) for part in added], 1) if number_of_streams == 2 else added[0]

        residual = dictionary.site(name, compute)
        if outputs:
            return outputs[0]
        if number_of_streams == 1:
            return streams[0] + residual
        parts = residual.split([stream[0].numel() for stream in streams], 1)
        return tuple(stream + part.view(stream.shape) for stream, part in zip(streams, parts, strict=True))

    for number, (block, number_of_streams) in enumerate(zip(blocks, numbers_of_streams, strict=True)):
        yield block, functools.partial(forward, f"blocks.{number}.block", block.forward, number_of_streams)


def as_branches(blocks, dictionary, numbers_of_streams):
    """The forwards of blocks whose branches are sites, added with the gates of the current step."""

    def forward(name, block, number_of_streams, *args, **kwargs):
        given = given_to(args, kwargs)
        y, text, gate = given["x"], given.get("text"), gate_of(given["scale"])
        if block.spec.mixes:
            x, words = y, text
            y = y + gate * dictionary.site(f"{name}.mix", lambda: block.mix(normed(x), words))
        z = y

        def some(indices):
            chosen = torch.stack([row[picks] for row, picks in zip(z, indices, strict=True)])
            return block.mlp(block.before_mlp(chosen))

        y = y + gate * dictionary.site(f"{name}.mlp", lambda: block.mlp(block.before_mlp(z)), some)
        if number_of_streams == 1:
            return y
        return y, text + TEXT_GATE * dictionary.site(f"{name}.mlp_text", lambda: block.mlp_text(normed(text)))

    for number, (block, number_of_streams) in enumerate(zip(blocks, numbers_of_streams, strict=True)):
        yield block, functools.partial(forward, f"blocks.{number}", block, number_of_streams)


def given_to(args, kwargs):
    return dict(zip(("x", "text", "scale"), args, strict=False)) | kwargs
