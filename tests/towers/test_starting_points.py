"""Checkpoints as open_clip's trainer writes them give here what open_clip's own loader makes of them, and what was done to them is said."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

import clipkit
from clipkit.loading import load_encoder
from clipkit.towers.open_clip import build_pair, pair_from_config
from clipkit.towers.open_clip_weights import load_open_clip_weights
from clipkit.towers.resolution import resized
from tests.towers.test_open_clip import SIGLIP, TEXTS, VIT, peer

TIMM = VIT | {
    "vision_cfg": {"image_size": 32, "timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear"}
}
LARGE = VIT | {
    "vision_cfg": VIT["vision_cfg"] | {"image_size": 48},
    "text_cfg": VIT["text_cfg"] | {"context_length": 32},
}


def written(model, path, *, prefix="module.", optimizer=True):
    """A checkpoint as ``open_clip_train`` saves it: model, optimiser with moments, epoch, name."""
    state = {prefix + key: value for key, value in model.state_dict().items()}
    held = {"epoch": 3, "name": "a run", "state_dict": state}
    if optimizer:
        adam = torch.optim.AdamW(model.parameters())
        sum(p.sum() for p in model.parameters()).backward()
        adam.step()
        held["optimizer"] = adam.state_dict()
        held["scaler"] = torch.amp.GradScaler("cpu").state_dict()
        held["state_dict"] = {prefix + key: value for key, value in model.state_dict().items()}
    torch.save(held, path)
    return path


def assert_same(pair, model):
    """Towers of ours against open_clip's whole model."""
    height, width = pair.image.model.image_size if hasattr(pair.image.model, "image_size") else (32, 32)
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    tokens = pair.tokenize(TEXTS)
    with torch.no_grad():
        mean, std = (torch.tensor(pair.preprocess[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        want = model.encode_image((images / 255 - mean) / std, normalize=True)
        torch.testing.assert_close(pair.image.eval()(images).pooled, want, atol=1e-5, rtol=0)
        want = model.encode_text(tokens, normalize=True)
        torch.testing.assert_close(pair.text.eval()(tokens).pooled, want, atol=1e-6, rtol=0)
    assert pair.log_scale == pytest.approx(float(model.logit_scale.detach()))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("config", [VIT, SIGLIP], ids=["vit", "siglip"])
def test_a_trainer_s_checkpoint_is_what_open_clip_loads(config, prefix, tmp_path):
    model = peer(config, tmp_path)
    path = written(model, tmp_path / "epoch_3.pt", prefix=prefix)
    pair = pair_from_config(config, weights=str(path))
    plain = peer(config, tmp_path)
    if prefix in ("", "module."):  # the others open_clip's loader does not take
        open_clip.factory.load_checkpoint(plain, str(path))
    else:
        plain.load_state_dict(model.state_dict())
    assert_same(pair, plain)
    assert pair.notes == ()
    assert pair.bias == (None if plain.logit_bias is None else pytest.approx(float(plain.logit_bias.detach())))


@pytest.mark.parametrize("config", [VIT, TIMM], ids=["vit", "timm"])
def test_plain_state_dicts_and_safetensors_load_too(config, tmp_path):
    model = peer(config, tmp_path)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    for name in ("weights.pt", "w.safetensors"):
        assert_same(pair_from_config(config, weights=str(tmp_path / name)), model)


def test_other_sizes_resize_position_embeddings_as_open_clip_does_and_say_so(tmp_path):
    path = written(peer(VIT, tmp_path), tmp_path / "epoch_3.pt")
    want = peer(LARGE, tmp_path)
    open_clip.factory.load_checkpoint(want, str(path))
    pair = pair_from_config(LARGE, weights=str(path))
    assert_same(pair, want)
    patches, words = pair.notes
    assert "epoch_3.pt: visual.positional_embedding was resized from 4 x 4 to 6 x 6 patches" in patches
    assert "was resized from 24 to 32 tokens" in words


def test_timm_s_embedding_is_resized_where_open_clip_gives_up(tmp_path):
    """As from one of SigLIP's models to its like for larger images."""
    model = peer(TIMM, tmp_path)
    state, larger = model.state_dict(), pair_from_config(TIMM)
    larger.image.model.trunk.set_input_size(img_size=192)
    model.visual.trunk.set_input_size(img_size=192)
    with pytest.raises(RuntimeError, match="pos_embed"):
        open_clip.factory.load_checkpoint(model, str(written(peer(TIMM, tmp_path), tmp_path / "w.pt", optimizer=False)))
    notes = load_open_clip_weights(larger.image.model, larger.text.model, state, place="w.pt")
    assert notes == ["w.pt: visual.trunk.pos_embed was resized from 10 x 10 to 12 x 12 patches (bicubic)"]
    own, small = larger.image.model.trunk.pos_embed, state["visual.trunk.pos_embed"]
    torch.testing.assert_close(own, resized(small[0], (10, 10), (12, 12))[None])
    assert torch.equal(own[:, 0], small[:, 0])  # the class token's stays


def test_a_run_of_the_trainer_loads_with_the_options_it_had(tmp_path):
    """``RUN/params.txt`` names the model, its image size and its normalisation."""
    config = open_clip.get_model_config("ViT-S-32-alt")
    config["vision_cfg"]["image_size"] = 64
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    model = peer(config, tmp_path)
    path = written(model, folder / "epoch_3.pt", optimizer=False)
    options = ["force_context_length: None", "force_image_size: [64]", "image_mean: [0.5, 0.5, 0.5]", "image_std: None"]
    (tmp_path / "run" / "params.txt").write_text("\n".join([*options, "model: ViT-S-32-alt", "lr: 0.1", ""]))
    encoder, notes = load_encoder(path)
    assert notes == []
    assert encoder.info.preprocess["size"] in (64, (64, 64), [64, 64])
    assert list(encoder.info.preprocess["mean"]) == [0.5, 0.5, 0.5]
    assert torch.equal(encoder.text.model.positional_embedding, model.positional_embedding)
    (tmp_path / "run" / "params.txt").write_text("force_image_size: big\nmodel: ViT-S-32-alt\n")
    with pytest.raises(ValueError, match=r"params\.txt: an option of the model cannot be read"):
        load_encoder(path)


def test_weights_beside_an_exported_configuration_load_and_a_second_source_of_weights_is_refused(tmp_path):
    model = peer(VIT, tmp_path)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "best.safetensors")
    encoder, _ = load_encoder(tmp_path / "best.safetensors")
    assert torch.equal(encoder.text.model.token_embedding.weight, model.token_embedding.weight)
    from clipkit.loading import load_pair

    with pytest.raises(ValueError, match="brings its own weights; leave out pretrained"):
        load_pair(str(tmp_path / "best.safetensors"), "laion2b_s34b_b79k")


def test_a_file_of_another_model_is_refused_with_its_keys(tmp_path):
    state = peer(VIT, tmp_path).state_dict()
    state["visual.extra"] = state.pop("visual.proj")
    state["decoder.weight"] = torch.zeros(2)
    state["ln_final.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="w.pt does not hold") as error:
        pair_from_config(VIT, weights=str(tmp_path / "w.pt"))
    for part in (
        "1 missing: visual.proj",
        "1 unexpected: visual.extra",
        "1 unexpected: decoder.weight",
        "1 of another shape: text.ln_final.bias ([7], wanted [32])",
    ):
        assert part in str(error.value)


class Trap:
    """Unpickled, it would make a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


@pytest.mark.parametrize("kind", ["trap", "text", "empty", "list", "cut"])
def test_what_is_no_file_of_weights_is_refused_and_nothing_in_it_runs(kind, tmp_path):
    path, marker = tmp_path / "w.pt", tmp_path / "marker"
    if kind == "trap":
        torch.save({"state_dict": {}, "args": Trap(marker)}, path)
    elif kind == "text":
        path.write_text("no weights\n")
    elif kind == "cut":
        path = tmp_path / "w.safetensors"
        path.write_bytes(b"\x00" * 5)
    else:
        torch.save({"empty": {}, "list": [1]}[kind], path)
    with pytest.raises(ValueError, match="w.pt|w.safetensors"):
        pair_from_config(VIT, weights=str(path))
    assert not marker.exists()


def test_training_starts_from_a_trainer_s_checkpoint(tmp_path, shards):
    from tests.conftest import TINY_MODEL
    from tests.test_training import write_config

    model = peer(TINY_MODEL, tmp_path)
    path = written(model, tmp_path / "epoch_3.pt")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_MODEL))
    config = write_config(tmp_path, tmp_path / "tiny.json", shards)
    options = {
        "run": str(tmp_path / "run"),
        "trainer.length": "2 steps",
        "optim.lr": 0.0,
        "model.pretrained": str(path),
    }
    encoder = clipkit.load(clipkit.fit(config, options).folder)
    torch.testing.assert_close(encoder.text.model.token_embedding.weight, model.token_embedding.weight)


def test_a_named_model_takes_a_file_of_weights(tmp_path):
    config = open_clip.get_model_config("ViT-S-32-alt")
    model = peer(config, tmp_path)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    pair = build_pair("ViT-S-32-alt", str(tmp_path / "w.pt"))
    assert torch.equal(pair.image.model.proj, model.visual.proj)
    encoder, _ = load_encoder(f"ViT-S-32-alt:{tmp_path / 'w.pt'}")
    assert torch.equal(encoder.image.model.proj, model.visual.proj)
