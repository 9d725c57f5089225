"""Small encoders with random weights, and real photographs."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from clipkit.encoder import Encoder
from clipkit.towers.open_clip import pair_from_config

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "vit": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 48, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": TEXT,
    },
    "convnext": {
        "embed_dim": 32,
        "vision_cfg": {
            "timm_model_name": "convnext_atto",
            "timm_model_pretrained": True,  # as published configurations say; an export fetches nothing
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 64,
        },
        "text_cfg": TEXT,
    },
    "siglip": {
        "embed_dim": 32,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {"image_size": 48, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    },
}
PREPROCESS: dict[str, dict[str, Any]] = {
    "vit": {},
    "convnext": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "siglip": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"},
}
TEXTS = [
    "a red bicycle",
    "two dogs on a beach",
    "the temple at night",
    "a yellow flower",
    "blue sky over a lake",
    "a busy street",
    "an old map",
    "a plate of food",
]


def build(name: str) -> Encoder:
    torch.manual_seed(0)
    pair = pair_from_config(CONFIGS[name], preprocess=PREPROCESS[name])
    return Encoder.from_pair(pair, model=f"tiny {name}", pretrained=None)


@pytest.fixture(scope="session")
def vit() -> Encoder:
    return build("vit")


@pytest.fixture(scope="session")
def photos() -> list[Image.Image]:
    """Crops of two real photographs, of several sizes."""
    whole = [np.asarray(image) for image in load_sample_images().images]
    crops = []
    for number in range(8):
        side, left, top = 80 + 31 * number, 37 * number, 11 * number
        crops.append(Image.fromarray(whole[number % 2][top : top + side - 17, left : left + side]))
    return crops
