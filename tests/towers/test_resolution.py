"""Vision transformers at other resolutions: open_clip's own resize of their position embeddings, with gradients."""

from types import SimpleNamespace

import pytest
import torch
from open_clip.model import resize_pos_embed

from clipkit.towers.open_clip import pair_from_config
from clipkit.towers.resolution import resized
from tests.conftest import TINY_MODEL


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return pair_from_config(TINY_MODEL).image


def pictures(*size):
    return torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8)


@pytest.mark.parametrize("size", [24, 8, 40])
def test_it_is_what_open_clip_loads_at_that_size(tower, size):
    config = TINY_MODEL | {"vision_cfg": TINY_MODEL["vision_cfg"] | {"image_size": size}}
    there = pair_from_config(config).image
    state = {f"visual.{key}": value for key, value in tower.model.state_dict().items()}
    resize_pos_embed(state, SimpleNamespace(visual=there.model))
    there.model.load_state_dict({key.removeprefix("visual."): value for key, value in state.items()})
    x = pictures(size, size)
    torch.testing.assert_close(tower(x).pooled, there(x).pooled, rtol=0, atol=1e-6)


def test_its_own_resolution_is_left_alone_and_the_weights_keep_their_shape(tower):
    x = pictures(16, 16)
    before = tower(x).pooled
    tower(pictures(32, 8))
    assert torch.equal(tower(x).pooled, before)
    assert tower.model.positional_embedding.shape == (5, 32)
    embedding = tower.model.positional_embedding
    torch.testing.assert_close(resized(embedding, (2, 2), (2, 2)), embedding)


def test_gradients_reach_the_embeddings_through_the_interpolation(tower):
    tower(pictures(24, 32)).pooled.square().sum().backward()
    tower(pictures(24, 32)).pooled[:, 0].sum().backward()
    gradient = tower.model.positional_embedding.grad
    assert gradient.shape == (5, 32)
    assert (gradient.abs().sum(1) > 0).all()


def test_a_size_that_patches_do_not_divide_is_refused(tower):
    with pytest.raises(ValueError, match="20 x 16 do not divide into patches of 8 x 8"):
        tower(pictures(20, 16))
