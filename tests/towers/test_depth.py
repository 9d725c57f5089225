import open_clip
import pytest
import torch

from clipkit.towers.depth import depths
from clipkit.towers.open_clip import pair_from_config

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 3}
VIT = {"image_size": 16, "layers": 4, "width": 32, "patch_size": 8, "head_width": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
CONVNEXT = {"timm_model_name": "convnext_atto", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32}


def pair(vision):
    return pair_from_config({"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT})


@pytest.mark.parametrize(
    ("vision", "unlocked"), [(RESNET, 0), *((VIT, unlocked) for unlocked in range(8))]
)  # open_clip locks no part of a ModifiedResNet
def test_unlocked_layers_are_open_clip_s_groups(vision, unlocked):
    ours, theirs = pair(vision).image, pair(vision).image.model
    if unlocked > max(depths(theirs).values()) + 1:
        with pytest.raises(ValueError, match="layers, its projection counted"):
            ours.lock(unlocked)
        return
    ours.lock(unlocked)
    theirs.lock(unlocked_groups=unlocked)
    assert {n: p.requires_grad for n, p in ours.model.named_parameters()} == {
        n: p.requires_grad for n, p in theirs.named_parameters()
    }


def test_text_and_timm_towers_have_layers():
    towers = pair(CONVNEXT)
    text, image = depths(towers.text.model), depths(towers.image.model)
    assert {name for name, depth in text.items() if depth == 0} == {"text_projection"}
    assert text["ln_final.weight"] == text["transformer.resblocks.2.ln_1.weight"] == 1
    assert text["token_embedding.weight"] == text["positional_embedding"] == 4
    assert image["head.proj.weight"] == 0
    assert image["trunk.stem.0.weight"] == max(image.values())
    assert set(image) == {name for name, _ in towers.image.model.named_parameters()}


def test_what_is_locked_stays_in_evaluation():
    towers = pair(RESNET)
    towers.image.lock(1)
    towers.image.train()
    norms = [m for m in towers.image.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert towers.image.model.attnpool.training
    towers.text.lock(0)
    towers.text.train()
    assert not any(module.training for module in towers.text.modules())


def test_patches_are_dropped_in_training_only():
    tower = pair(VIT).image
    tower.drop_patches(0.5)
    seen = []
    tower.model.transformer.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[1]))
    image = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    tower.train()(image)
    tower.eval()(image)
    assert seen == [3, 5]
    assert isinstance(tower.model.patch_dropout, open_clip.transformer.PatchDropout)
    with pytest.raises(ValueError, match="no patches to drop"):
        pair(RESNET).image.drop_patches(0.5)
