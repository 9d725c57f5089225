"""From `augment:`, `views:` and `stages:` to transforms and batches; what the towers do not take is refused at the start."""

import json

import numpy as np
import open_clip
import pytest
import torch
import yaml
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import RandomResizedCrop

import clipkit
from clipkit.checkpoint import read_checkpoint, weight_hash
from clipkit.config import DataSpec, EvalAugmentSpec, OpenClipAugmentSpec, TimmAugmentSpec
from clipkit.data.augment import Augment, crop_boxes
from clipkit.data.draws import CROP, uniforms
from clipkit.data.images import image_tensor
from clipkit.data.timm_augment import TimmAugment
from clipkit.data.transforms import Preprocess
from clipkit.encoder import preprocess_of
from clipkit.staging import Tokens, build_stages, pixels_needed, transform_of
from clipkit.towers.open_clip import pair_from_config
from tests.conftest import TINY_MODEL, write_shard

STEPS = 9
STAGES = {
    "low": {"until": "3 steps", "image_size": 8, "text_length": 8, "augment": "open_clip"},
    "timm": {"until": "75 samples", "augment": {"kind": "timm", "auto": "rand-m9-mstd0.5-inc1"}},
}
VIEWS = {"image_view1": {"flip": 0.5}, "image_view2": {"grayscale": 0.5}}
LOSSES = {
    "pairs": {"kind": "infonce", "duplicates": "ignore"},
    "views": {"kind": "infonce", "pair": ["image_view1", "image_view2"]},
}


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    return pair_from_config(TINY_MODEL)


def picture():
    y, x = np.mgrid[:61, :83]
    return Image.fromarray(np.stack([x * 3 % 256, y * 4 % 256, (x + y) % 256], -1).astype(np.uint8))


@pytest.mark.parametrize("size", [16, 40])
def test_open_clips_transforms_by_name(pair, size, monkeypatch):
    preprocess = preprocess_of(pair.preprocess)
    ours = transform_of(OpenClipAugmentSpec(kind="open_clip", scale=(0.4, 0.8)), preprocess, pair, (size, size))
    positions = np.arange(6)
    found = ours([image_tensor(picture())] * 6, seed=1, positions=positions)
    draws = uniforms(1, positions, CROP, 22)
    boxes = crop_boxes(np.full(6, 61), np.full(6, 83), draws, (0.4, 0.8), (3 / 4, 4 / 3))
    theirs = image_transform(size, is_train=True, mean=(0.0,) * 3, std=(1.0,) * 3, aug_cfg={"scale": (0.4, 0.8)})
    assert (theirs.transforms[0].scale, theirs.transforms[0].ratio) == (ours.scale, ours.ratio)
    for row, box in enumerate(boxes.tolist()):
        monkeypatch.setattr(RandomResizedCrop, "get_params", staticmethod(lambda *_, box=box: tuple(box)))
        assert (found[row] - theirs(picture()) * 255).abs().max() <= 1.001
    strong = OpenClipAugmentSpec(
        kind="open_clip", color_jitter=(0.4, 0.4, 0.4, 0.1), color_jitter_prob=0.8, gray_scale_prob=0.2
    )
    assert transform_of(strong, preprocess, pair, (size, size)) == Augment(
        (size, size), color_jitter=(0.4, 0.4, 0.4, 0.1), color_jitter_prob=0.8, grayscale=0.2
    )
    evaluation = transform_of(EvalAugmentSpec(kind="eval"), preprocess, pair, (size, size))
    theirs = image_transform(size, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert (evaluation(image_tensor(picture())) - theirs(picture()) * 255).abs().max() <= 1.001
    timm = transform_of(TimmAugmentSpec(kind="timm", re_prob=0.3), preprocess, pair, (size, size))
    assert timm == TimmAugment((size, size), preprocess_mean(pair), tuple(pair.preprocess["std"]), re_prob=0.3)


def preprocess_mean(pair):
    return tuple(pair.preprocess["mean"])


def test_fast_decoding_keeps_the_pixels_that_the_smallest_crop_needs(pair):
    views = {"image_view1": {"kind": "random", "scale": [0.25, 1.0]}}
    train = {"squares": {"shards": "x.tar"}}
    stages = {"low": {"until": "1 steps", "image_size": 8}}
    for fast, needed in ((True, {"": 32, "low": 16}), (False, {"": 0, "low": 0})):
        data = DataSpec(
            train=train, batch_size=8, views=views, stages=stages, fast_decode=fast, image_policy="open_clip"
        )
        last, ((_, low),) = build_stages(data, pair)
        assert {stage.name: stage.decode.shrink_to for stage in (last, low)} == needed  # of crops of a quarter
        assert last.decode.policy == "open_clip"
    assert pixels_needed(Preprocess((16, 24))) == 24


def test_shorter_texts_keep_their_end(pair):
    texts = ["a", "a very long caption with many more words than eight tokens", ""]
    full, cut = Tokens(pair.tokenize)(texts), Tokens(pair.tokenize, 8)(texts)
    assert (full.shape, cut.shape) == ((3, 16), (3, 8))
    end = int(full.max())
    assert (cut == end).sum(1).tolist() == [1, 1, 1]
    assert cut[1, -1] == end
    assert torch.equal(cut[1, :-1], full[1, :7])
    assert torch.equal(cut[[0, 2]], full[[0, 2], :8])
    for limit in (None, 3):  # in training the tower cuts to 8 more; the features are those of the short text
        longest = pair.text.lengths(cut[:, :limit] if limit else cut)
        assert max(longest) <= (limit or 8)
    torch.testing.assert_close(pair.text(cut).pooled[0], pair.text(full).pooled[0], rtol=0, atol=1e-5)


def test_the_tokenizers_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("clipkit.staging._MOST_WORDS", 50)
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    tokens = Tokens(tokenize)
    words = [f"word{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(300)]
    expected = tokenize(words)
    for n, word in enumerate(words):
        assert torch.equal(tokens([word])[0], expected[n])
        assert len(tokenize.cache) < 60 or n == 0


def config(folder, model, **data):
    write_shard(folder / "0.tar", 40)
    write_shard(folder / "1.tar", 40, first=40)
    tree = {
        "model": str(model),
        "seed": 1,
        "data": {"train": {"squares": {"shards": f"{folder}/*.tar"}}, "batch_size": 16, "workers": 0} | data,
        "losses": LOSSES if "views" in data else {"pairs": LOSSES["pairs"]},
        "optim": {"warmup": "2 steps"},
        "trainer": {"length": f"{STEPS} steps", "devices": 1, "accelerator": "cpu"},
        "checkpoint": {"every": "2 steps", "keep_last": 20},
        "logging": {"every": "1 steps"},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_a_run_of_stages_and_views_goes_on_anywhere_with_the_same_bits(tmp_path, tiny_model):
    path = config(tmp_path, tiny_model, stages=STAGES, views=VIEWS)
    whole = clipkit.fit(path, {"run": str(tmp_path / "whole"), "trainer.micro_batch": 5}).folder
    last = weight_hash(read_checkpoint(whole / "checkpoints" / str(STEPS)).model)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {"train/loss/pairs", "train/loss/views"} <= set(lines[0])
    for step in (2, 4):
        run = tmp_path / f"from{step}"
        changes = {"run": str(run), "trainer.micro_batch": 5, "data.workers": 1}
        clipkit.fit(path, changes, resume=str(whole / "checkpoints" / str(step)))
        assert weight_hash(read_checkpoint(run / "checkpoints" / str(STEPS)).model) == last
    with pytest.raises(ValueError, match=r"data\.stages\.low\.until"):
        clipkit.fit(path, {"run": str(whole), "trainer.micro_batch": 5, "data.stages.low.until": "4 steps"})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (
            {"stages": {"low": {"until": "2 steps", "image_size": 12}}},
            r"stages\.low\.image_size=12 x 12.*patches of 8 x 8",
        ),
        ({"stages": {"low": {"until": "2 steps", "text_length": 17}}}, r"stages\.low\.text_length=17.*context is 16"),
        ({"stages": {"low": {"until": "2 steps", "text_length": 2}}}, r"text_length=2.*at least 3"),
        ({"stages": {"a": {"until": "3 steps"}, "b": {"until": "40 samples"}}}, r"stage 'b' ends at 40 samples"),
        ({"stages": {"low": {"until": "2 steps", "augment": {"kind": "timm", "auto": "nope"}}}}, "'nope'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, tiny_model, data, says):
    with pytest.raises(ValueError, match=says):
        clipkit.fit(config(tmp_path, tiny_model, **data), {"run": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


def test_a_view_that_no_loss_uses_is_refused_unless_there_are_own_losses(tmp_path, tiny_model):
    path = config(tmp_path, tiny_model, views=VIEWS)
    with pytest.raises(ValueError, match="no loss uses image_view2"):
        clipkit.fit(path, {"run": str(tmp_path / "run"), "losses.views.pair": ["image", "image_view1"]})
    assert not (tmp_path / "run").exists()


def test_a_resnet_takes_its_own_resolution_alone(tmp_path):
    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "head_width": 8}
    model = tmp_path / "resnet.json"
    model.write_text(json.dumps(TINY_MODEL | {"vision_cfg": vision}))
    stages = {"low": {"until": "2 steps", "image_size": 32}}
    with pytest.raises(ValueError, match=r"stages\.low\.image_size=32 x 32: the model does not take it"):
        clipkit.fit(config(tmp_path, model, stages=stages), {"run": str(tmp_path / "run")})


def test_transforms_of_a_stage_have_its_size(pair):
    preprocess = Preprocess((16, 16), interpolation="bilinear")
    for spec in (EvalAugmentSpec(kind="eval"), TimmAugmentSpec(kind="timm")):
        made = transform_of(spec, preprocess, pair, (8, 24))
        assert (made.size, made.interpolation) == ((8, 24), "bilinear")


@pytest.mark.parametrize(("name", "native", "takes"), [("resnet18", 64, True), ("vit_tiny_patch16_224", 224, False)])
def test_timms_towers_are_asked_whether_they_take_a_size(name, native, takes):
    vision = {"timm_model_name": name, "timm_model_pretrained": False, "timm_proj": "linear", "image_size": native}
    vision["timm_pool"] = "avg"
    model = pair_from_config(TINY_MODEL | {"vision_cfg": vision})
    before = {key: value.clone() for key, value in model.image.named_buffers()}
    stages = {"low": {"until": "1 steps", "image_size": 32}}
    data = DataSpec(train={"squares": {"shards": "x.tar"}}, batch_size=8, stages=stages)
    if takes:
        assert build_stages(data, model)[1][0][1].images["image"].size == (32, 32)
    else:
        with pytest.raises(ValueError, match=r"image_size=32 x 32: the model does not take it.*leave it out"):
            build_stages(data, model)
    assert model.image.training
    for key, value in model.image.named_buffers():
        assert torch.equal(value, before[key]), key  # the trial is no training: batch norms saw nothing
