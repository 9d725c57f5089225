"""Two objects in two corners: a tower trained here in seconds must see each word where its object is."""

import itertools
import random

import pytest
import torch
from PIL import Image

from clipkit import api
from clipkit.cli.main import run
from clipkit.encoder import Encoder
from clipkit.explanation.explain import MOST_WORDS, explain
from clipkit.losses.infonce import infonce
from clipkit.towers import places
from clipkit.towers.open_clip import pair_from_config

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 60),
    "blue": (40, 60, 220),
    "yellow": (240, 220, 40),
    "purple": (150, 40, 180),
    "black": (10, 10, 10),
}
SIDE, HALF = 32, 16
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VISION = {
    "vit": {"image_size": SIDE, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "convnet": {
        "image_size": SIDE,
        "timm_model_name": "test_resnet",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
}
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # row, column


def draw(objects: dict[tuple[int, int], str], jitter: int = 0) -> torch.Tensor:
    """A grey image uint8 (3, 32, 32) with a square of each colour in its corner."""
    image = torch.full((3, SIDE, SIDE), 160, dtype=torch.uint8)
    for (row, column), name in objects.items():
        top, left = row * HALF + 3 + jitter % 4, column * HALF + 3 + jitter // 4 % 4
        image[:, top : top + 9, left : left + 9] = torch.tensor(COLOURS[name], dtype=torch.uint8)[:, None, None]
    return image


def train(kind: str, steps: int) -> Encoder:
    torch.manual_seed(0)
    pair = pair_from_config({"embed_dim": 32, "vision_cfg": VISION[kind], "text_cfg": TEXT})
    scenes = [(name,) for name in COLOURS] + list(itertools.combinations(COLOURS, 2))
    tokens = pair.tokenize([" ".join(scene) for scene in scenes])
    optimiser = torch.optim.AdamW([*pair.image.parameters(), *pair.text.parameters()], lr=2e-3)
    draws = random.Random(0)
    views = {"vit": 2, "convnet": 1}[kind]
    for _ in range(steps):
        batch = [scene for scene in scenes for _ in range(views)]
        images = torch.stack(
            [
                draw(dict(zip(draws.sample(CORNERS, len(scene)), scene, strict=True)), draws.randrange(16))
                for scene in batch
            ]
        )
        image, text = pair.image(images).pooled, pair.text(tokens).pooled
        loss = sum(infonce(image[view::views], text, torch.tensor(10.0)) for view in range(views)) / views
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    optimiser.zero_grad()
    return Encoder.from_pair(pair, model=kind, pretrained=None)


@pytest.fixture(scope="module", params=["vit", "convnet"])
def encoder(request):
    return train(request.param, {"vit": 60, "convnet": 40}[request.param])


def hottest_corner(relevance: torch.Tensor) -> tuple[int, int]:
    height, width = relevance.shape
    quarters = relevance.reshape(2, height // 2, 2, width // 2).mean((1, 3))
    place = int(quarters.argmax())
    return place // 2, place % 2


def test_each_word_is_hottest_where_its_object_is(encoder):
    wrong, asked = [], 0
    for first, second in ((0, 3), (2, 1)):
        for one in COLOURS:
            for other in COLOURS:
                if one == other:
                    continue
                image = draw({CORNERS[first]: one, CORNERS[second]: other})
                found = explain(encoder, image, f"{one} {other}")
                for name, corner, relevance in zip((one, other), (first, second), found.maps, strict=True):
                    asked += 1
                    if hottest_corner(relevance) != CORNERS[corner]:
                        wrong.append((one, other, name, corner))
    assert len(wrong) <= asked * 0.02, f"{len(wrong)} of {asked}: {wrong[:10]}"


def test_attention_is_looked_at_without_changing_the_tower(encoder):
    image = draw({CORNERS[1]: "green"})
    before = encoder.encode_image([image])
    explain(encoder, image, "green")
    assert torch.equal(before, encoder.encode_image([image]))
    assert all(parameter.grad is None for parameter in encoder.image.parameters())


def test_integrated_gradients_sum_to_what_the_image_adds(encoder, monkeypatch):
    monkeypatch.setattr(places, "STEPS", 200)
    x = encoder.image.normalise(encoder.prepare([draw({CORNERS[2]: "red"})]))
    direction = encoder.encode_text(["red", "blue"])
    maps = places._integrated(encoder.image, x, direction)
    with torch.no_grad():
        mean = encoder.image(x.mean((2, 3), keepdim=True).expand_as(x)).pooled
        added = ((encoder.image(x).pooled - mean) @ direction.T)[0]
    assert maps.sum((1, 2)) == pytest.approx(added, abs=0.05)


def test_pictures_are_written_for_an_exported_model(encoder, tmp_path, capsys):
    if encoder.info.model != "vit":
        pytest.skip("one export is enough")
    api.export(encoder, "open_clip", tmp_path / "model")
    Image.fromarray(draw({CORNERS[0]: "red"}).permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    words = " ".join(f"w{i}" for i in range(MOST_WORDS + 3))
    arguments = ["explain", str(tmp_path / "model"), str(tmp_path / "a.png"), words, "--out", str(tmp_path / "e.png")]
    assert run(arguments) == 0
    for name in ("e.png", "e.words.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 300
            assert len(set(picture.convert("RGB").getdata())) > 50
    for wrong, said in ((["--out", "e.jpg"], "FILE.png"), ([], "no image")):
        picture = "a.png" if wrong else "model/open_clip_config.json"
        assert run(["explain", str(tmp_path / "model"), str(tmp_path / picture), "red", *wrong]) == 2
        assert said in capsys.readouterr().err


def test_a_text_without_words_is_refused(encoder):
    with pytest.raises(ValueError, match="holds no word"):
        explain(encoder, draw({}), " -- ")
