import pytest

from clipkit.config import (
    AugmentSpec,
    ConfigError,
    EvalAugmentSpec,
    OpenClipAugmentSpec,
    TimmAugmentSpec,
    load_config,
    write_config,
)


@pytest.mark.parametrize(
    ("override", "spec"),
    [
        ("data.augment=open_clip", OpenClipAugmentSpec(kind="open_clip")),
        ("data.augment=eval", EvalAugmentSpec(kind="eval")),
        ("data.augment.flip=0.5", AugmentSpec(flip=0.5)),
        (
            "data.augment={kind: timm, auto: rand-m9-mstd0.5-inc1}",
            TimmAugmentSpec(kind="timm", auto="rand-m9-mstd0.5-inc1"),
        ),
    ],
)
def test_short_names_and_kinds(folder, override, spec):
    config = load_config("small.yaml", [override])
    assert config.data.augment == spec
    write_config(config, folder / "resolved.yaml")
    assert load_config(folder / "resolved.yaml") == config


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.augment=opencilp", r"data\.augment\.kind.*random, open_clip, timm, eval"),
        ("data.augment={kind: open_clip, color_jitter: [0.4, 0.4, 0.4, 0.1]}", "give both or neither"),
        ("data.augment={kind: open_clip, color_jitter_prob: 0.8}", "give both or neither"),
        ("data.augment={kind: timm, auto: rand-m9, color_jitter: [0.4, 0.4, 0.4, 0.1]}", "timm drops color_jitter"),
        ("data.augment={kind: eval, flip: 0.5}", r"data\.augment\.flip.*unknown key"),
        ("data.views={view1: eval}", r"data\.views\.view1.*image_view1 to image_view99"),
        ("data.stages={low: {image_size: 96}}", r"data\.stages\.low\.until.*missing"),
        ("data.stages={low: {until: 2h}}", r"data\.stages\.low\.until.*samples, epochs or steps"),
        ("data.image_policy=pil", r"data\.image_policy.*clipkit, open_clip"),
        ("data.start_method=thread", r"data\.start_method.*forkserver"),
    ],
)
def test_what_is_wrong_is_said(folder, override, says):
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        load_config("small.yaml", [override])


def test_stages_are_set_by_their_name(folder):
    stages = "data.stages={low: {until: 10M samples, image_size: 96, text_length: 16}, wide: {until: 3 epochs, image_size: [96, 128]}}"
    config = load_config("small.yaml", [stages, "data.stages.low.until=2 epochs"])
    low, wide = config.data.stages.values()
    assert (str(low.until), low.image_size, low.text_length, low.augment) == ("2 epochs", (96, 96), 16, None)
    assert wide.image_size == (96, 128)


def test_a_loss_may_pair_views_where_there_are_images(folder):
    views = "data.views={image_view1: {flip: 0.5}, image_view2: eval}"
    loss = "loss={kind: infonce, pair: [image_view1, image_view2]}"
    assert load_config("small.yaml", [views, loss]).losses["infonce"].pair == ("image_view1", "image_view2")
    with pytest.raises(ConfigError, match="missing: image_view1, image_view2"):
        load_config("small.yaml", [loss])
