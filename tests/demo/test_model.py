"""The demo's model: one open_clip configuration, without BatchNorm, small enough for two cores."""

import json
from pathlib import Path

import open_clip
import torch

CONFIG = Path(__file__).parents[2] / "configs" / "demo_model.json"


def test_the_demo_model_is_an_open_clip_configuration_without_batchnorm():
    model = open_clip.CLIP(**json.loads(CONFIG.read_text()))
    assert not [name for name, part in model.named_modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    assert sum(parameter.numel() for parameter in model.visual.parameters()) < 1e6
    image = model.encode_image(torch.zeros(2, 3, 32, 32))
    tokens = open_clip.SimpleTokenizer(context_length=model.context_length)(["a red apple", "a dog"])
    assert image.shape == model.encode_text(tokens).shape == (2, 128)
