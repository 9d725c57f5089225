"""The folder that open_clip loads, and a check of it that catches every wrong one."""

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clipkit.encoder import Encoder
from clipkit.exporters.open_clip import CONFIG, WEIGHTS, OpenClipFormat
from clipkit.exporters.parity import ParityError
from clipkit.exporters.probes import Probes
from clipkit.exporters.prove import export_encoder, prove
from clipkit.towers.open_clip import build_pair

from .conftest import CONFIGS, TEXT, TEXTS, build

FORMAT = OpenClipFormat()


@pytest.mark.parametrize("name", list(CONFIGS))
def test_open_clip_loads_the_folder_and_agrees(
    name: str, photos: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = build(name)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a call left the machine"))
    report = export_encoder(encoder, FORMAT, tmp_path / "out", images=photos, texts=TEXTS)
    assert report.held
    assert all(check.spread > 0.05 for check in report.checks if check.spread is not None)
    assert all(cosine < 0.9999 for cosine in report.controls.values())  # wrong preprocessing would have been caught
    held = json.loads((tmp_path / "out" / "parity.json").read_text(), parse_constant=pytest.fail)
    assert held["held"]
    assert len(held["checks"]) == 13
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(TEXTS)
    with torch.no_grad():
        image = model.eval().encode_image(torch.stack([preprocess(photo) for photo in photos]), normalize=True)
        text = model.encode_text(tokens, normalize=True)
    assert torch.allclose(image, encoder.encode_image(photos), atol=1e-3)
    assert torch.allclose(text, encoder.encode_text(TEXTS), atol=1e-5)
    assert all(path.stat().st_mode & 0o044 for path in (tmp_path / "out").iterdir())  # others may read it
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert set(config["preprocess_cfg"]) == {"mean", "std", "interpolation", "resize_mode"}
    assert not config["model_cfg"]["vision_cfg"].get("timm_model_pretrained", False)


def test_the_folder_comes_back_as_the_same_encoder(vit: Encoder, photos: list[Image.Image], tmp_path: Path) -> None:
    export_encoder(vit, FORMAT, tmp_path / "a", images=photos, texts=TEXTS)
    again = Encoder.from_pair(build_pair(str(tmp_path / "a")), model="again", pretrained=None)
    assert torch.equal(again.encode_image(photos), vit.encode_image(photos))
    export_encoder(again, FORMAT, tmp_path / "b", images=photos, texts=TEXTS)
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in "ab")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["vit", "siglip"])
def test_without_probes_of_ones_own_the_embedded_data_serve(name: str, tmp_path: Path) -> None:
    report = export_encoder(build(name), FORMAT, tmp_path / "out")
    assert report.details["probes"] == {"images": 20, "flattened": 0, "texts": 22}
    assert all(cosine < 0.9999 for cosine in report.controls.values())


def flip_gelu(stored: dict[str, Any]) -> None:
    stored["model_cfg"]["quick_gelu"] = False


def imagenet_mean(stored: dict[str, Any]) -> None:
    stored["preprocess_cfg"] |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def lose_mean(stored: dict[str, Any]) -> None:
    stored["preprocess_cfg"] = {"mean": [0.0] * 3, "std": [1.0] * 3}


def bilinear(stored: dict[str, Any]) -> None:
    stored["preprocess_cfg"]["interpolation"] = "bilinear"


def squash(stored: dict[str, Any]) -> None:
    stored["preprocess_cfg"]["resize_mode"] = "squash"


@pytest.mark.parametrize("model_sized", [False, True])
@pytest.mark.parametrize("harm", [flip_gelu, imagenet_mean, lose_mean, bilinear, squash])
def test_a_wrong_configuration_is_caught(
    vit: Encoder, photos: list[Image.Image], tmp_path: Path, harm: Callable[[dict[str, Any]], None], model_sized: bool
) -> None:
    # images that have the model's size already hide a wrong resize; the check must not depend on the user's choice
    probes = Probes.of([photo.resize((48, 48)) for photo in photos] if model_sized else photos, TEXTS)
    FORMAT.write(vit, tmp_path)
    assert prove(vit, FORMAT, tmp_path, probes).held
    stored = json.loads((tmp_path / CONFIG).read_text())
    harm(stored)
    (tmp_path / CONFIG).write_text(json.dumps(stored))
    report = prove(vit, FORMAT, tmp_path, probes)
    assert not {check.name: check for check in report.checks}["images, whole path, in batches of 7"].held
    with pytest.raises(ParityError, match="images, whole path, in batches of 7"):
        report.require()


def test_a_wrong_end_of_text_is_caught(vit: Encoder, photos: list[Image.Image], tmp_path: Path) -> None:
    """A configuration that pools at the number of a comma, or at the beginning, instead of at the end of text."""
    FORMAT.write(vit, tmp_path)
    right = json.loads((tmp_path / CONFIG).read_text())
    for end, held in ((49407, True), (267, False), (49406, False)):
        text = right["model_cfg"]["text_cfg"] | {"pool_type": "eos", "eos_id": end}
        (tmp_path / CONFIG).write_text(json.dumps(right | {"model_cfg": right["model_cfg"] | {"text_cfg": text}}))
        checks = {check.name: check for check in prove(vit, FORMAT, tmp_path, Probes.of(photos, TEXTS)).checks}
        assert checks["images, whole path, in batches of 7"].held
        for name in ("texts in batches of 7", "texts, whole path, in batches of 7"):
            assert checks[name].held == held, end


@pytest.mark.parametrize(
    ("key", "harm", "check"),
    [
        ("visual.conv1.weight", lambda x: x.flip(1), "images in batches of 1"),  # channels swapped
        ("visual.proj", lambda x: x.half().float(), "images in batches of 7"),
        ("text_projection", lambda x: x.T.contiguous(), "texts, whole path, in batches of 7"),
        ("token_embedding.weight", lambda x: x.half().float(), "texts in batches of 2"),
        ("logit_scale", lambda x: x + 0.1, "temperature"),
    ],
)
def test_wrong_weights_are_caught(
    vit: Encoder, photos: list[Image.Image], tmp_path: Path, key: str, harm: Callable[[torch.Tensor], Any], check: str
) -> None:
    FORMAT.write(vit, tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    state[key] = harm(state[key]).clone()
    save_file(state, tmp_path / WEIGHTS)
    report = prove(vit, FORMAT, tmp_path, Probes.of(photos, TEXTS))
    assert not {found.name: found for found in report.checks}[check].held


def test_what_differs_leaves_no_folder_and_is_named(
    vit: Encoder, photos: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = vit.state_dict_open_clip()
    state["positional_embedding"] = state["positional_embedding"].flip(0)
    monkeypatch.setattr(vit, "state_dict_open_clip", lambda: state)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "precious").write_text("kept")
    for out, force in (("new", False), ("taken", True)):
        said = (
            r"the open_clip export of tiny vit differs from the encoder:\n  FAIL texts in batches of 1: .*worst: text '"
        )
        with pytest.raises(ParityError, match=said):
            export_encoder(vit, FORMAT, tmp_path / out, images=photos, texts=TEXTS, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    assert (tmp_path / "taken" / "precious").read_text() == "kept"


def test_a_taken_folder_is_refused_unless_forced(vit: Encoder, photos: list[Image.Image], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_encoder(vit, FORMAT, tmp_path / "out", images=photos, texts=TEXTS)  # an empty one is free
    (tmp_path / "out" / "old").write_text("")
    with pytest.raises(ValueError, match="out is not empty; name another folder, or replace it with --force"):
        export_encoder(vit, FORMAT, tmp_path / "out", images=photos, texts=TEXTS)
    export_encoder(vit, FORMAT, tmp_path / "out", images=photos, texts=TEXTS, force=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [CONFIG, WEIGHTS, "encoder_image.safetensors", "encoder_text.safetensors", "parity.json"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_hugging_face_tokenizer_travels_with_the_folder(photos: list[Image.Image], tmp_path: Path) -> None:
    encoder = Encoder.from_pair(build_pair(str(word_tokenizer(tmp_path))), model="words", pretrained=None)
    export_encoder(encoder, FORMAT, tmp_path / "out", images=photos, texts=TEXTS)
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(TEXTS)
    assert torch.equal(tokens, encoder.tokenize(TEXTS))
    assert tokens[0].tolist()[:4] == [3, 4, 5, 2]  # a red bicycle, then the end


def word_tokenizer(tmp_path: Path) -> Path:
    """A model folder without weights whose tokenizer is a Hugging Face one of few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys(["[PAD]", "[UNK]", "[END]", *" ".join(TEXTS).split()])
    vocabulary = {word: number for number, word in enumerate(words)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", 2)])
    folder = tmp_path / "source"
    fast = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]")
    fast.save_pretrained(folder)
    text = TEXT | {"vocab_size": len(vocabulary), "hf_tokenizer_name": "someone/words", "eos_id": 2, "pool_type": "eos"}
    stored = {"model_cfg": CONFIGS["vit"] | {"text_cfg": text}, "preprocess_cfg": {}}
    (folder / CONFIG).write_text(json.dumps(stored))
    return folder


def test_a_tokenizer_of_ones_own_is_refused(vit: Encoder, photos: list[Image.Image], tmp_path: Path) -> None:
    other = build("vit")
    other.tokenize = lambda texts: vit.tokenize(texts)
    with pytest.raises(
        ValueError, match=re.escape("open_clip's format cannot hold a function; it takes open_clip's Simple")
    ):
        export_encoder(other, FORMAT, tmp_path / "out", images=photos, texts=TEXTS)
    assert not list(tmp_path.iterdir())
