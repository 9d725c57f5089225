"""Features before the projection: one forward gives both, and the projection leads from one to the other."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from clipkit.encoder import Encoder
from clipkit.towers.before_projection import before_projection
from clipkit.towers.open_clip import ImageTower, pair_from_config

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}
TIMM = {"image_size": 64, "timm_model_name": "convnext_atto", "timm_pool": "", "timm_drop": 0.0}

VISION = {
    "vit": (VIT, lambda model: lambda x: x @ model.proj, 64),
    "resnet": (RESNET, lambda model: model.attnpool.c_proj, 256),
    "convnext linear": (TIMM | {"timm_proj": "linear"}, lambda model: model.head, 320),
    "convnext mlp": (TIMM | {"timm_proj": "mlp"}, lambda model: model.head, 320),
    "convnext classifier": (
        TIMM | {"timm_proj": "", "timm_pool": "avg"},
        lambda model: model.trunk.get_classifier(),
        320,
    ),
}


def tower(vision):
    torch.manual_seed(0)
    pair = pair_from_config({"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT})
    return pair, torch.randint(0, 256, (3, 3, vision["image_size"], vision["image_size"]), dtype=torch.uint8)


@pytest.mark.parametrize("name", VISION)
@torch.no_grad()
def test_the_projection_leads_from_one_to_the_other(name):
    vision, projection, width = VISION[name]
    pair, x = tower(vision)
    image = pair.image.eval()
    before = {key: value.clone() for key, value in image.state_dict().items()}
    raw, embedding = before_projection(image, x)
    assert raw.shape == (3, width)
    torch.testing.assert_close(embedding, image(x).pooled)
    torch.testing.assert_close(normalize(projection(image.model)(raw), dim=1), embedding)
    assert raw.norm(dim=1).sub(1).abs().min() > 0.01, "it is not brought to unit norm"
    assert all(torch.equal(value, before[key]) for key, value in image.state_dict().items())
    assert before.keys() == image.state_dict().keys()


@torch.no_grad()
def test_a_tower_without_a_projection_gives_the_same_twice():
    pair, x = tower(TIMM | {"timm_proj": "none", "timm_pool": "avg"})
    raw, embedding = before_projection(pair.image.eval(), x)
    torch.testing.assert_close(normalize(raw, dim=1), embedding)


def test_an_unknown_model_is_refused():
    odd = ImageTower(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(ValueError, match="Sequential: it is not known where it projects"):
        before_projection(odd, torch.zeros(1, 3, 2, 2, dtype=torch.uint8))


def test_an_encoder_gives_both_side_by_side():
    pair, x = tower(VIT)
    encoder = Encoder.from_pair(pair, model="tiny", pretrained=None)
    found = encoder.encode_image_features(list(x), batch_size=2)
    torch.testing.assert_close(found[:, 64:], encoder.encode_image(list(x)))
    torch.testing.assert_close(found[:, :64], before_projection(encoder.image, x)[0].detach())
    assert encoder.encode_image_features([]).shape == (0, 88)
