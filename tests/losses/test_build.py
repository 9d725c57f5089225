"""What a configuration's losses become: temperatures shared or own, a bias where a loss trains one."""

import pytest

from clipkit.building import build_model, build_module
from clipkit.config import load_config
from clipkit.losses.ring import Ring


@pytest.fixture
def module(tmp_path, tiny_model):
    def of(losses):
        path = tmp_path / "losses.yaml"
        fields = "{image: jpg, text: txt, teacher_image: image.npy, teacher_text: text.npy}"
        path.write_text(
            f"model: {{name: {tiny_model}}}\ndata: {{train: {{a: {{shards: a.tar, fields: {fields}}}}}, batch_size: 64}}\n"
            f"losses: {losses}\ntrainer: {{length: 2 steps}}\n"
        )
        config = load_config(path)
        return build_module(config, build_model(config), steps=2, warmup=0, own_losses={})

    return of


def test_losses_of_a_pair_share_its_temperature_and_its_bias_trains_where_one_reads_it(module):
    built = module("{a: infonce, b: {kind: sigmoid, weight: 2}}")
    (scale,) = built.scales.values()
    assert built.losses["a"].scale() is not None
    assert built.losses["b"].bias() is scale.bias
    assert scale.bias.item() == pytest.approx(-4.158883)  # -ln 64
    assert scale.bias.requires_grad
    assert built.weights == {"a": 1.0, "b": 2.0}


def test_an_own_temperature_is_another_and_is_kept_with_the_rest(module):
    built = module("{a: infonce, b: {kind: sigmoid, scale: own, bias: -10}}")
    assert set(built.scales) == {"image_text", "image_text_b"}
    assert built.scales["image_text"].bias is None
    assert built.losses["b"].bias().item() == -10
    assert "scales.image_text_b.bias" in built.state_dict()
    assert not any(name.startswith("losses") for name in built.state_dict())


def test_every_kind_is_built(module):
    built = module(
        "{a: {kind: infonce, prefixes: {8: 0.5, 16: 1}, exchange: ring}, b: distillation, c: triplet, d: mutual_information, "
        "e: {kind: slip, hidden: 8, out: 4}, f: {kind: sogclr, samples: 100}}"
    )
    assert built.losses["a"].prefixes.widths == (8, 16)
    assert isinstance(built.losses["a"].exchange, Ring)
    assert built.losses["e"].head[0].in_features == 16
    assert built.state_dict()["losses.f.log_text"].shape == (100,)


def test_a_temperature_that_no_loss_reads_does_not_wait_for_a_gradient(module):
    assert not module("{c: triplet}").scales["image_text"].log_scale.requires_grad
    assert module("{c: infonce}").scales["image_text"].log_scale.requires_grad
