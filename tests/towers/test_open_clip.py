import json

import open_clip
import pytest
import torch

from clipkit.towers.open_clip import build_pair, open_clip_state_dict, pair_from_config
from clipkit.towers.open_clip_weights import load_open_clip_weights

VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
TIMM = VIT | {
    "vision_cfg": {"image_size": 32, "timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear"}
}
SIGLIP = VIT | {
    "custom_text": True,
    "init_logit_bias": -10,
    "text_cfg": VIT["text_cfg"] | {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "pad_id": 1},
}
EOS = VIT | {"custom_text": True, "text_cfg": VIT["text_cfg"] | {"pool_type": "eos", "eos_id": 49407}}
TEXTS = ["", "a dog", "a red apple to the left of a green pear", "word " * 60, "naïve café 🍎"]


def peer(config, tmp_path):
    """open_clip's own model of a configuration."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return open_clip.create_model(f"local-dir:{tmp_path}").eval()


@pytest.mark.parametrize("config", [VIT, TIMM, SIGLIP, EOS], ids=["vit", "timm", "siglip", "eos"])
def test_towers_give_what_open_clip_gives_from_the_weights_they_export(config, tmp_path):
    pair = pair_from_config(config)
    model = peer(config, tmp_path)
    model.load_state_dict(
        open_clip_state_dict(pair.config, pair.image.eval(), pair.text.eval(), pair.log_scale, pair.bias), strict=True
    )
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    tokens = pair.tokenize(TEXTS)
    with torch.no_grad():
        mean, std = (torch.tensor(pair.preprocess[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        want = model.encode_image((images / 255 - mean) / std, normalize=True)
        torch.testing.assert_close(pair.image(images).pooled, want, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            pair.text(tokens).pooled, model.encode_text(tokens, normalize=True), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("config", [VIT, EOS], ids=["argmax", "eos"])
def test_cutting_after_the_end_of_text_changes_nothing(config):
    pair = pair_from_config(config)
    tokens = pair.tokenize(TEXTS)
    lengths = pair.text.lengths(tokens)
    assert lengths == [int((row == 49407).int().argmax()) + 1 for row in tokens]
    full = pair.text(tokens).pooled
    for row, length in enumerate(lengths):
        torch.testing.assert_close(
            pair.text(tokens[row : row + 1, :length]).pooled, full[row : row + 1], atol=1e-6, rtol=0
        )


def test_a_tower_that_pools_padding_is_never_cut():
    pair = pair_from_config(SIGLIP)
    assert pair.text.lengths(pair.tokenize(TEXTS)) is None


def test_weights_round_trip_through_open_clips_names(tmp_path):
    one, other = pair_from_config(VIT), pair_from_config(VIT)
    state = open_clip_state_dict(one.config, one.image, one.text, one.log_scale, one.bias)
    assert load_open_clip_weights(other.image.model, other.text.model, state, place="here") == []
    assert all(torch.equal(a, b) for a, b in zip(one.text.parameters(), other.text.parameters(), strict=True))
    state = {f"module.{k}": v for k, v in peer(VIT, tmp_path).state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state}, tmp_path / "epoch_1.pt")
    loaded = pair_from_config(VIT, weights=str(tmp_path / "epoch_1.pt"))
    assert torch.equal(loaded.text.model.token_embedding.weight, state["module.token_embedding.weight"])


def test_a_json_file_and_a_name_build_the_same_architecture(tmp_path):
    path = tmp_path / "model.json"
    path.write_text(json.dumps(VIT))
    assert build_pair(str(path)).config["embed_dim"] == 16
    assert build_pair("RN50-quickgelu").config["embed_dim"] == 1024


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B32", None, "did you mean ViT-B-32"),
        ("nowhere.json", None, "does not exist"),
        ("coca_ViT-B-32", None, "CoCa"),
        ("RN50", "no_such_tag", "no_such_tag"),
    ],
)
def test_what_cannot_be_built_says_why(name, pretrained, message):
    with pytest.raises(ValueError, match=message):
        build_pair(name, pretrained)


def test_broken_configurations_are_named(tmp_path):
    path = tmp_path / "model.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        build_pair(str(path))
    path.write_text('{"embed_dim": 4}')
    with pytest.raises(ValueError, match="text_cfg, vision_cfg missing"):
        build_pair(str(path))
    with pytest.raises(ValueError, match="does not hold weights of this model"):
        load_open_clip_weights(
            pair_from_config(VIT).image.model, pair_from_config(VIT).text.model, {}, place="weights.pt"
        )


def test_a_hostile_tokenizer_in_a_model_folder_does_not_run(tmp_path):
    text = VIT["text_cfg"] | {"hf_tokenizer_name": "any", "tokenizer_kwargs": {"trust_remote_code": True}}
    folder, marker = tmp_path / "model", tmp_path / "marker"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": VIT | {"text_cfg": text}, "preprocess_cfg": {}})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Evil: pass\n")
    with pytest.raises(ValueError, match="trust_remote_code"):
        build_pair(str(folder))
    with pytest.raises(ValueError, match="trust_remote_code"):
        pair_from_config(VIT | {"text_cfg": text})
    assert not marker.exists()
    with pytest.raises(AttributeError):
        open_clip.get_tokenizer(f"local-dir:{folder}")  # the control: the trap is real
    assert marker.exists()


def test_the_tokenizer_options_of_open_clip_s_own_models_are_allowed():
    from clipkit.towers.model_files import refuse_tokenizer_code

    for name in open_clip.list_models():
        refuse_tokenizer_code(name, open_clip.get_model_config(name))


def test_what_is_wrong_with_a_file_names_the_file(tmp_path):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(VIT | {"vision_cfg": VIT["vision_cfg"] | {"colour": "red"}}))
    with pytest.raises(ValueError, match=r"odd\.json.*colour"):
        build_pair(str(path))


def test_an_unknown_tag_is_named_with_those_that_there_are(caplog):
    with pytest.raises(
        ValueError, match="'nosuch' are no tag of it and no file; its tags are openai, .*laion2b_s34b_b79k"
    ):
        build_pair("ViT-B-32", "nosuch")
    assert not caplog.records
