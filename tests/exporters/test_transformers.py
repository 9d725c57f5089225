"""Folders that transformers loads by AutoModel and AutoProcessor, refusals, and a check that catches every wrong folder."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer

import clipkit
from benchmarks.export_models import build as build_small
from clipkit.encoder import Encoder
from clipkit.exporters.formats import make_format
from clipkit.exporters.probes import Probes
from clipkit.exporters.prove import export_encoder, prove
from clipkit.exporters.transformers import TransformersFormat, _siglip_config
from clipkit.towers.open_clip import pair_from_config

from .conftest import CONFIGS, PREPROCESS, TEXT, TEXTS, build

FORMAT = TransformersFormat()


def siglip(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """timm's attention-pooled tower, small: open_clip's configurations name large ones only."""
    text = TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    config = CONFIGS["siglip"] | {"embed_dim": 64, "text_cfg": text}
    config["vision_cfg"] = {"image_size": 64, "timm_model_name": "test_vit", "timm_pool": "avg", "timm_proj": "linear"}
    monkeypatch.setitem(CONFIGS, "timm", config)
    monkeypatch.setitem(PREPROCESS, "timm", PREPROCESS["siglip"])
    encoder = build("timm")
    side = encoder.preprocess.size[0]
    encoder.image.model.trunk = VisionTransformer(
        img_size=side,
        patch_size=16,
        embed_dim=64,
        depth=2,
        num_heads=2,
        class_token=False,
        global_pool="map",
        num_classes=0,
    ).eval()
    encoder.image.model.head = torch.nn.Identity()
    return encoder


def test_clip(vit: Encoder, photos: list[Image.Image], tmp_path: Path) -> None:
    report = export_encoder(vit, FORMAT, tmp_path / "out", images=photos, texts=[*TEXTS, "ten o’clock “sharp”"])
    assert report.held
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["eos_token_id"] == 49407
    assert config["text_config"]["hidden_act"] == config["vision_config"]["hidden_act"] == "quick_gelu"
    assert config["model_type"] == "clip"


def test_siglip(photos: list[Image.Image], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = build_small("siglip", tmp_path)
    report = export_encoder(encoder, FORMAT, tmp_path / "out", images=photos, texts=TEXTS)
    assert report.held
    assert "it/s]" not in capfd.readouterr().err  # a bar of transformers
    assert not report.details["deviations"]  # no crop
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "siglip"
    assert config["text_config"]["eos_token_id"] == encoder.tokenize.tokenizer.eos_token_id  # type: ignore[attr-defined]


def test_siglip_with_open_clips_own_tokenizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees the padding, which is "!": a special token of transformers, wherever it stands in a text."""
    with pytest.raises(ValueError, match="transformers cannot pad with open_clip's own '!'"):
        FORMAT.refuse(siglip(monkeypatch))


def test_siglip_without_an_end_of_text_has_that_of_its_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = siglip(monkeypatch)
    for own, written in ((None, 1), (7, 7)):
        encoder.tokenize = SimpleNamespace(tokenizer=SimpleNamespace(eos_token_id=own))  # type: ignore[assignment]
        assert _siglip_config(encoder)["text_config"]["eos_token_id"] == written


def test_towers_that_transformers_has_no_class_for_are_refused(tmp_path: Path) -> None:
    for name, said in (("convnext", "image tower ConvNeXt"), ("siglip", "pools by 'last'")):
        with pytest.raises(ValueError, match=said):
            export_encoder(build(name), FORMAT, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": [48, 64]}, "square images, not 48 x 64"),
        ({"resize_mode": "longest"}, "do not resize by 'longest'"),
        ({"interpolation": "nearest"}, "do not interpolate by 'nearest'"),
        ({"size": [32, 32]}, "built for .* and takes 32 x 32"),
    ],
)
def test_preprocessing_that_it_cannot_do_is_refused_before_anything_is_written(
    change: dict[str, Any], said: str
) -> None:
    encoder = build("vit")
    encoder.info = replace(encoder.info, preprocess=encoder.info.preprocess | change)
    encoder.preprocess = replace(encoder.preprocess, size=tuple(change.get("size", encoder.preprocess.size)))
    with pytest.raises(ValueError, match=said):
        FORMAT.refuse(encoder)


def test_a_cleaning_that_it_cannot_do_is_refused_before_anything_is_written() -> None:
    encoder = build("vit")
    encoder.tokenize = SimpleNamespace(tokenizer=None, clean_fn=len, eot_token_id=2, sot_token_id=1)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="cleaning len has no counterpart"):
        FORMAT.refuse(encoder)


def test_byte_pairs_that_keep_capitals_are_refused_and_canonical_ones_held(
    photos: list[Image.Image], tmp_path: Path
) -> None:
    encoder = build("vit")
    for clean, taken in (("whitespace", False), ("canonicalize", True)):
        encoder.tokenize = SimpleTokenizer(context_length=16, clean=clean)  # type: ignore[assignment]
        for format in ("transformers", "immich", "clip_as_service"):
            if taken and format != "clip_as_service":
                assert export_encoder(encoder, make_format(format), tmp_path / format, images=photos, texts=TEXTS).held
                continue
            with pytest.raises(ValueError, match=r"keeps capitals|OpenAI's tokenizer"):
                make_format(format).refuse(encoder)


@pytest.mark.parametrize("format", ["transformers", "immich"])
def test_tokens_are_open_clips(format: str, tmp_path: Path) -> None:
    encoder = build("vit")
    make_format(format).write(encoder, tmp_path)
    theirs = clipkit.load(tmp_path).tokenize
    hard = ["stop!", "wow!a dog", "!", "! !!", "IT'S A TEST_case", "ﬅ „x‚ ʼn ﾊﾟ！", "a\x07b\ufeffc  d"]
    for own, found in zip(encoder.tokenize(hard), theirs(hard), strict=True):
        end = int((own == encoder.tokenize.eot_token_id).nonzero()[0]) + 1  # type: ignore[attr-defined]
        assert found[:end].tolist() == own[:end].tolist()
        assert len(set(found[end:].tolist())) <= 1


def test_towers_that_it_has_no_keys_for_are_refused_before_anything_is_written() -> None:
    for change in ({"proj_type": "none"}, {"ls_init_value": 0.1}):
        config = CONFIGS["vit"] | {"text_cfg": TEXT | change}
        encoder = Encoder.from_pair(pair_from_config(config), model="tiny", pretrained=None)
        with pytest.raises(ValueError, match="have a projection and no layer scale"):
            FORMAT.refuse(encoder)


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    stored = json.loads(path.read_text())
    change(stored)
    path.write_text(json.dumps(stored))


def gelu(folder: Path) -> None:
    changed(
        folder / "config.json", lambda s: [s[t].update(hidden_act="gelu") for t in ("text_config", "vision_config")]
    )


def bilinear(folder: Path) -> None:
    changed(folder / "preprocessor_config.json", lambda s: s.update(resample=2))


def mean(folder: Path) -> None:
    changed(
        folder / "preprocessor_config.json",
        lambda s: s.update(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]),
    )


def end_of_text(folder: Path) -> None:
    changed(folder / "config.json", lambda s: s["text_config"].update(eos_token_id=49406))


def channels(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    key = next(k for k in state if k.endswith("patch_embedding.weight"))
    state[key] = state[key].flip(1).contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("harm", [gelu, bilinear, mean, end_of_text, channels])
def test_a_wrong_folder_is_caught(
    vit: Encoder, photos: list[Image.Image], tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    FORMAT.write(vit, tmp_path)
    probes = Probes.of(photos, TEXTS)
    assert prove(vit, FORMAT, tmp_path, probes).held
    harm(tmp_path)
    assert not prove(vit, FORMAT, tmp_path, probes).held
