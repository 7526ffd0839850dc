"""What a session may not leave behind: the attributes of every module."""

import torch


def everything(*targets):
    """The attributes of every module in ``targets``: names, which objects they name, hooks and parameters included."""
    return [
        {
            name: (id(value), [*map(id, value.values())] if isinstance(value, dict) else None)
            for name, value in vars(owner).items()
        }
        for target in targets
        for owner in (target.modules() if isinstance(target, torch.nn.Module) else [target])
    ]
