"""Random weights of Inception in the published format."""

import pytest
import torch
from torch import nn

from support.torchvision_standin import FeatureExtractorInceptionV3


def write_inception(path):
    """Random weights of torch-fidelity's Inception as the file that it publishes: a state dict."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        model = FeatureExtractorInceptionV3("random", ["2048"])
    for each in model.modules():
        if isinstance(each, nn.Conv2d):
            nn.init.kaiming_normal_(each.weight)
    torch.save(model.state_dict(), path)
    return path
