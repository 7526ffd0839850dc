"""Which models forecache knows, at which level, and how a user adds one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from forecache.errors import ModelError
from forecache.models.families import dit, flux, original, pixart, sd3, wan, whole_blocks
from forecache.models.layout import Layout, Level


class Adapter(NamedTuple):
    """What is known of a family. kind: the class, or what its blocks look like. sites: their kinds, in order."""

    name: str
    kind: str
    level: Level
    sites: tuple[str, ...]
    fits: Callable[[Any], bool]
    layout: Callable[[Any], Layout]


BUILT_IN = (
    Adapter(
        "DiT", "DiTTransformer2DModel", "branches", ("attn", "mlp"), dit.fits, dit.layout
    ),
    Adapter(
        "PixArt-alpha, Sigma", "PixArtTransformer2DModel", "branches", ("attn", "cross", "mlp"),
        pixart.fits, pixart.layout,
    ),
    Adapter(
        "Stable Diffusion 3, 3.5", "SD3Transformer2DModel", "branches", ("attn", "attn2", "mlp", "mlp_text"),
        sd3.fits, sd3.layout,
    ),
    Adapter(
        "FLUX.1", "FluxTransformer2DModel", "branches", ("attn", "mlp", "mlp_text", "parallel"),
        flux.fits, flux.layout,
    ),
    Adapter("Wan 2.1, 2.2", "WanTransformer3DModel", "branches", ("attn", "cross", "mlp"), wan.fits, wan.layout),
    *(
        Adapter(each.name, each.kind, "blocks", ("block",), each.fits, whole_blocks.layout)
        for each in whole_blocks.FAMILIES
    ),
    Adapter(
        "facebookresearch/DiT, timm", "blocks of norm1, attn, norm2, mlp, ...", "branches", ("attn", "mlp"),
        original.fits, original.layout,
    ),
)  # fmt: skip
"""In the order in which they are asked."""

_registered: dict[type, Adapter] = {}


class Registration:
    """A registered adapter; ``with`` or `remove` takes it out again."""

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def remove(self) -> None:
        """forecache forgets the class; once more does nothing."""
        _registered.pop(self._kind, None)

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def register(kind: type, layout: Callable[[Any], Layout], *, name: str | None = None) -> Registration:
    """Teach forecache a model of your own: ``layout(model)`` says what its sites are, for ``kind`` and its subclasses.

    layout: most often `forecache.models.layout.from_blocks` of one `forecache.models.blocks.Block` for each block, with
    its branches. It comes before what is built in. name: as `forecache models` lists it.

    Raises ModelError if ``kind`` is no module class, or is registered already.
    """
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ModelError(f"An adapter is registered for a class of torch modules, not for {kind!r}.")
    if kind in _registered:
        raise ModelError(
            f"There is an adapter for {kind.__name__} already ({_registered[kind].name}): call remove() on what "
            "register gave for it, or use it in a `with` block."
        )
    if not callable(layout):
        raise ModelError(f"The layout of {kind.__name__} must be a function of the model, not {layout!r}.")

    def checked(model: Any) -> Layout:
        found = layout(model)
        if not isinstance(found, Layout):
            raise ModelError(
                f"The adapter of {kind.__name__} gave a {type(found).__name__} instead of a layout: end it with "
                "`return forecache.models.layout.from_blocks(model, blocks)`."
            )
        return found

    _registered[kind] = Adapter(
        name or kind.__name__, kind.__name__, "branches", (), lambda model: isinstance(model, kind), checked
    )
    return Registration(kind)


def adapters() -> tuple[Adapter, ...]:
    """All that are known; the user's first, the last registered before the others."""
    return (*reversed(_registered.values()), *BUILT_IN)


def adapter_for(model: nn.Module) -> Adapter | None:
    """The first adapter that knows this model."""
    return next((each for each in adapters() if each.fits(model)), None)


def table() -> list[dict[str, str]]:
    """What is supported and at which level, one row a family: name, model, level, sites."""
    return [
        {"name": each.name, "model": each.kind, "level": each.level, "sites": ", ".join(each.sites)}
        for each in adapters()
    ]
