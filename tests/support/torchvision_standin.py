"""torch-fidelity and lpips import torchvision, which does not work beside the torch of CI: they get a stand-in.

It has the names that they look up while they are imported, and trunks of torchvision's shapes without weights.
"""

import importlib.machinery
import sys
import types
from contextlib import contextmanager

from torch import nn

NAMES = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional",
         "torchvision.models")  # fmt: skip


def _alexnet(**_):
    """The features of torchvision's alexnet: five convolutions."""
    layers = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(True), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2),
              nn.ReLU(True), nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(True),
              nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(True), nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(True),
              nn.MaxPool2d(3, 2)]  # fmt: skip
    return types.SimpleNamespace(features=nn.Sequential(*layers))


@contextmanager
def standing_in():
    """torchvision's names in sys.modules for the block; what imports them meanwhile keeps them."""
    before = {name: sys.modules.get(name) for name in NAMES}
    made = {}
    for name in NAMES:
        made[name] = types.ModuleType(name)
        made[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, made[name])
    for dataset in ("CIFAR10", "CIFAR100", "STL10"):
        setattr(made["torchvision.datasets"], dataset, type(dataset, (), {}))
    made["torchvision.models"].alexnet = _alexnet
    sys.modules.update(made)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = module


with standing_in():
    import lpips
    import torch_fidelity
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

__all__ = ["FeatureExtractorInceptionV3", "lpips", "torch_fidelity"]
