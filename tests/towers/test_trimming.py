"""Texts cut after their end, sorted by length, in parts: features and gradients are those of the whole context, for every kind of text tower."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.hf_model import HFTextEncoder
from transformers import RobertaConfig

from clipkit.towers.open_clip import TextTower, pair_from_config
from clipkit.towers.towers import Towers

CONTEXT, END, WORDS = 24, 63, 64
TEXT = {"context_length": CONTEXT, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 2}
NATIVE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": TEXT,
}
CONFIGS = {
    "native": NATIVE,
    "custom": NATIVE | {"custom_text": True, "text_cfg": TEXT | {"pool_type": "eos", "eos_id": END, "proj_bias": True}},
    "siglip": NATIVE | {"custom_text": True, "text_cfg": TEXT | {"pool_type": "last", "no_causal_mask": True}},
}
POOLERS = {"hf_cls": "cls_last_hidden_state_pooler", "hf_mean": "mean_pooler"}


@cache
def tower_of(kind):
    """A text tower of two layers in float64, and how it pads."""
    torch.manual_seed(0)
    if kind not in POOLERS:
        return pair_from_config(CONFIGS[kind]).text.double(), 0
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = RobertaConfig(
        vocab_size=WORDS,
        max_position_embeddings=CONTEXT + 2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **sizes,
    )
    model = HFTextEncoder("", 16, config=config, pooler_type=POOLERS[kind], proj_type="linear")
    return TextTower(model).double(), config.pad_token_id


def texts(lengths, padding, seed=0):
    """Tokens of texts of these lengths, end of text included."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(2, END, (len(lengths), CONTEXT), generator=generator)
    places = torch.arange(CONTEXT)
    ends = torch.tensor(lengths)[:, None]
    return x.where(places < ends - 1, END).where(places < ends, padding)


def features_and_gradients(tower, features, weight):
    tower.zero_grad()
    (features * weight).sum().backward()
    return features.detach(), {n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["native", "custom", *POOLERS])
@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(2, CONTEXT), min_size=1, max_size=20),
    micro_batch=st.none() | st.integers(1, 21),
)
def test_trimmed_texts_give_the_features_and_gradients_of_whole_ones(kind, lengths, micro_batch):
    tower, padding = tower_of(kind)
    x = texts(lengths, padding)
    assert tower.lengths(x) == lengths
    weight = torch.randn(len(lengths), 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want, want_gradients = features_and_gradients(tower, tower(x).pooled, weight)
    towers = Towers({"text": tower}, micro_batch=micro_batch)
    found = towers({"text": x, "lengths": towers.lengths({"text": x})})["text"].pooled
    got, gradients = features_and_gradients(tower, found, weight)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    assert gradients.keys() == want_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, want_gradients[name], rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize(
    ("micro_batch", "want"),
    [
        (None, [(8, 8), (8, 16), (8, 24)]),
        (12, [(12, 8), (12, 24)]),
    ],  # without micro-batches: parts of at least eight rows
)
@pytest.mark.parametrize("kind", ["native", "hf_mean"])
def test_parts_are_of_like_length_and_each_is_short(kind, micro_batch, want):
    tower, padding = tower_of(kind)
    x = texts([5, 12, 20] * 8, padding)
    if micro_batch == 12:
        x = texts([5, 20] * 12, padding)
    seen = []
    with tower.register_forward_pre_hook(lambda _, given: seen.append(tuple(given[0].shape))), torch.no_grad():
        towers = Towers({"text": tower}, micro_batch=micro_batch)
        towers({"text": x, "lengths": towers.lengths({"text": x})})
    assert seen == want


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_a_tower_that_reads_its_padding_always_gets_all_of_it(micro_batch):
    tower, padding = tower_of("siglip")
    x = texts([3, 4, 5, 20] * 4, padding)
    assert tower.lengths(x) is None
    towers = Towers({"text": tower}, micro_batch=micro_batch)
    assert towers.lengths({"text": x}) == {}
    seen = []
    with tower.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1])), torch.no_grad():
        found = towers({"text": x, "lengths": {}})["text"].pooled
    assert set(seen) == {CONTEXT}
    torch.testing.assert_close(found, tower(x).pooled)
