"""Each loss alone teaches two small towers something about drawings that they have not seen."""

import json

import pytest
import torch
import torch.nn.functional as F

from clipkit.building import build_data, build_model
from clipkit.config import load_config
from clipkit.losses.distillation import Distillation
from clipkit.losses.infonce import InfoNCE
from clipkit.losses.mutual_information import MutualInformation
from clipkit.losses.sigmoid import Sigmoid, start_bias
from clipkit.losses.slip import SLIP
from clipkit.losses.sogclr import SogCLR
from clipkit.losses.triplet import Triplet
from clipkit.towers.base import Features
from clipkit.towers.scale import LogitScale

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
STEPS, TRAIN, WORDS = 150, 4096, 4096
RATE_AND_BATCH = {"sigmoid": (5e-2, 512), "smile": (5e-3, 1024)}  # of the others 2e-2 and 512
CONFIG = """
model: {name: MODEL, pretrained: null}
data:
  train: {emoji: {shards: "embedded:train", fields: {image: webp, text: json.captions}}}
  augment: {scale: [0.9, 1.0]}
  batch_size: 256
  workers: 0
loss: infonce
trainer: {length: 17 steps}
"""
LOSSES = {
    "infonce": lambda t: InfoNCE(t.forward),
    "sigmoid": lambda t: Sigmoid(t.forward, lambda: t.bias),
    "distillation": lambda t: Distillation(t.forward, teacher_scale=20.0),
    "infonce_bound": lambda t: MutualInformation(t.forward, bound="infonce"),
    "dv": lambda t: MutualInformation(t.forward, bound="dv"),
    "smile": lambda t: MutualInformation(t.forward, bound="smile"),
    "sogclr": lambda t: SogCLR(t.forward, TRAIN, rho=1.0),
    "triplet": lambda t: Triplet(warmup=100 * 512),  # hardest-negative alone collapses from random weights
    "slip": lambda t: SLIP(32, hidden=64, out=32),
}


class Towers(torch.nn.Module):
    """Pixels through two layers, words through their mean."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(192, 256), torch.nn.ReLU(), torch.nn.Linear(256, 32)
        )
        self.words = torch.nn.EmbeddingBag(WORDS, 32, padding_idx=0)
        self.scale = LogitScale(bias=start_bias(512))

    def encode(self, image, text):
        return F.normalize(self.image(image), dim=1), F.normalize(self.words(text), dim=1)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """Training and held-out pictures (N, 3, 8, 8) and tokens (N, L) of the embedded data."""
    folder = tmp_path_factory.mktemp("learning")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    path = folder / "learning.yaml"
    path.write_text(CONFIG.replace("MODEL", str(folder / "tiny.json")))
    config = load_config(path)
    data = build_data(config, build_model(config), folder=folder)
    *train, held_out = list(data.train_dataloader())

    def stacked(batches):
        image = torch.cat([batch["image"] for batch in batches]).float()
        return F.adaptive_avg_pool2d(image, 8) / 127.5 - 1, torch.cat([batch["text"] for batch in batches]) % WORDS

    return stacked(train), stacked([held_out])


def recall(towers, data, views):
    with torch.no_grad():
        if views:
            image = data[0]
            x, y = (F.normalize(towers.image(part), dim=1) for part in (image, changed(image, 1)))
        else:
            x, y = towers.encode(*data)
    similar = x @ y.T
    nearer = (similar >= similar.diagonal()[:, None]).sum(1) - 1
    return (nearer < 5).float().mean().item()


def changed(image, seed):
    """A picture mirrored and a little noisy: another view."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
    return image.flip(-1) + 0.3 * noise


def trained(name, train):
    towers, (rate, size) = Towers(), RATE_AND_BATCH.get(name, (2e-2, 512))
    teacher = trained("infonce", train).encode(*train) if name == "distillation" else ()
    loss = LOSSES[name](towers.scale)
    optimizer = torch.optim.AdamW([*towers.parameters(), *loss.parameters()], lr=rate)
    image, text = train
    for step in range(STEPS):
        rows = torch.randperm(len(image), generator=torch.Generator().manual_seed(step))[:size]
        pooled = towers.encode(image[rows], text[rows])
        features = {"image": Features(pooled[0]), "text": Features(pooled[1])}
        if name == "slip":
            views = (image[rows], changed(image[rows], step))
            features |= {
                f"image_view{k}": Features(F.normalize(towers.image(view), dim=1)) for k, view in enumerate(views, 1)
            }
        batch = {"id": rows, "position": step * size}
        for field, values in zip(("teacher_image", "teacher_text"), teacher, strict=False):
            batch[field] = values[rows].detach()
        optimizer.zero_grad()
        loss(features, batch).backward()
        optimizer.step()
        towers.scale.clamp_()
    return towers


@pytest.mark.parametrize("name", LOSSES)
def test_150_steps_find_unseen_drawings(drawings, name):
    train, held_out = drawings
    torch.manual_seed(1)
    before, after = (recall(towers, held_out, name == "slip") for towers in (Towers(), trained(name, train)))
    chance = 5 / len(held_out[0])
    assert after > before
    assert after >= 3 * chance
