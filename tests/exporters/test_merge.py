"""Merged weights against a slow loop, and what cannot be merged."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image

import clipkit
from clipkit.encoder import Encoder
from clipkit.exporters.merge import mean_state, merge, shares
from clipkit.towers.open_clip import pair_from_config

from .conftest import CONFIGS, PREPROCESS, TEXT, TEXTS, build


def other(name: str = "vit", seed: int = 1, preprocess: dict[str, Any] | None = None, **changes: Any) -> Encoder:
    torch.manual_seed(seed)
    pair = pair_from_config(CONFIGS[name] | changes, preprocess=preprocess or PREPROCESS[name])
    encoder = Encoder.from_pair(pair, model=f"other {seed}", pretrained=None)
    encoder.log_scale += 0.1 * seed
    return encoder


def test_the_mean_against_a_slow_loop() -> None:
    torch.manual_seed(0)
    states = [{"a": torch.randn(3, 4).to(kind), "n": torch.tensor(k)} for k, kind in enumerate([torch.float32] * 3)]
    weights = [0.5, 0.2, 0.3]
    found = mean_state(states, weights)
    for row in range(3):
        for column in range(4):
            value = sum(w * float(state["a"][row, column]) for w, state in zip(weights, states, strict=True))
            assert float(found["a"][row, column]) == float(torch.tensor(value, dtype=torch.float64).float())
    assert found["n"] == 0
    assert found["n"] is not states[0]["n"]
    half = [{"a": torch.tensor([x], dtype=torch.float16)} for x in (1.0, 1.0009765625)]
    assert mean_state(half, [0.5, 0.5])["a"].dtype == torch.float16
    with pytest.raises(ValueError, match=r"model 2 has a \(2,\), the first \(1,\)"):
        mean_state([half[0], {"a": torch.zeros(2)}], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"model 2 has a absent"):
        mean_state([half[0], {}], [0.5, 0.5])


def test_of_three_each_has_its_share(vit: Encoder, photos: list[Image.Image]) -> None:
    others = [other(seed=1), other(seed=2)]
    merged, notes = merge([vit, *others], shares(2, [0.25, 0.35]))
    for field in ("image", "text"):
        own = [getattr(encoder, field).state_dict() for encoder in (vit, *others)]
        for name, value in getattr(merged, field).state_dict().items():
            if value.is_floating_point():
                assert torch.allclose(value, 0.4 * own[0][name] + 0.25 * own[1][name] + 0.35 * own[2][name], atol=1e-6)
    assert merged.logit_scale == pytest.approx(
        vit.logit_scale**0.4 * others[0].logit_scale ** 0.25 * others[1].logit_scale ** 0.35
    )
    assert len(notes) == 1
    assert not torch.allclose(merged.encode_image(photos), vit.encode_image(photos), atol=1e-3)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_ends_of_the_line_are_the_models(vit: Encoder, photos: list[Image.Image], weight: float) -> None:
    b = other()
    merged, _ = merge([vit, b], shares(1, [weight]))
    end = b if weight else vit
    assert torch.equal(merged.encode_image(photos), end.encode_image(photos))
    assert torch.equal(merged.encode_text(TEXTS), end.encode_text(TEXTS))


def test_statistics_of_batchnorm_are_said() -> None:
    resnet = {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}}
    pairs = [other(seed=seed, **resnet) for seed in (1, 2)]
    with torch.no_grad():
        for encoder in pairs:
            encoder.image.model.bn1.running_mean.fill_(float(encoder.info.model[-1]))
    merged, notes = merge(pairs, [0.5, 0.5])
    assert torch.equal(merged.image.model.bn1.running_mean, torch.full((4,), 1.5))
    assert "BatchNorm are averaged as they are" in notes[1]


def test_what_differs_cannot_be_merged(vit: Encoder) -> None:
    swapped = other()
    own = swapped.tokenize
    swapped.tokenize = lambda texts: own(texts).flip(1)  # type: ignore[assignment]
    keeping_capitals = other()
    keeping_capitals.tokenize = SimpleTokenizer(context_length=16, clean="whitespace")  # type: ignore[assignment]
    bilinear = other(preprocess={"interpolation": "bilinear"})
    for b, words in (
        (
            other(text_cfg=TEXT | {"layers": 3}),
            r"tiny vit and other 1 cannot be merged, their architecture differs: text_cfg.layers is 2",
        ),
        (other(quick_gelu=False), "architecture differs: quick_gelu is True in the one and False in the other"),
        (bilinear, "preprocessing differs: interpolation is bicubic in the one and bilinear in the other"),
        (swapped, "their tokenizers differ"),
        (keeping_capitals, "their tokenizers differ"),
        (other("siglip"), "architecture differs"),
        (other(init_logit_bias=-10), "only one of them has a logit bias"),
    ):
        with pytest.raises(ValueError, match=words):
            merge([vit, b], [0.5, 0.5])
    for weights, words in (
        ([0.6, 0.6], r"add up to 1.2"),
        ([-0.1, 0.5], r"--weight -0.1"),
        ([0.5], "1 --weight for 2 --merge"),
    ):
        with pytest.raises(ValueError, match=words):
            shares(2, weights)


def test_export_from_python(vit: Encoder, photos: list[Image.Image], tmp_path: Path) -> None:
    b = other()
    report = clipkit.export(
        vit, "open_clip", tmp_path / "out", images=photos, texts=TEXTS, merge=[b], licence="a `b` c"
    )
    assert report.held
    merged, _ = merge([vit, b], [0.5, 0.5])
    assert torch.equal(clipkit.load(tmp_path / "out").encode_image(photos), merged.encode_image(photos))
    stored = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert stored["licence"] == "a `b` c"
    assert [parent["model"] for parent in stored["parents"]] == ["tiny vit", "other 1"]
    with pytest.raises(ValueError, match="the share of a --merge; there is none"):
        clipkit.export(build("vit"), "open_clip", tmp_path / "new", weights=[0.5])
