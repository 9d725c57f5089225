import pytest

from clipkit.config import (
    ConfigError,
    Duration,
    describe_difference,
    flatten,
    load_config,
    load_with_sources,
    write_config,
)

LARGE = """\
model: {name: RN50, pretrained: null}
seed: 7
data:
  train:
    a: {shards: [x.tar, "y{0..3}.tar",], weight: 2, fields: {image: png, text: [json.captions, txt], label: cls}}
    b: {shards: embedded:train}
  val: {v: {shards: v.tar}}
  batch_size: 1Ki
  workers: 2
  augment: {color_jitter: [0.4, 0.4, 0.2, 0.1], affine: {degrees: 3, translate: 0.1}, fill: black}
losses: {contrast: {kind: infonce, weight: 0.5, duplicates: ignore}, other: infonce}
optim: {lr: 1e-3, warmup: 1.5 epochs, betas: [0.9, 0.95], clip_norm: 1}
trainer: {length: 3 epochs, devices: 2, micro_batch: 64, lightning: {profiler: simple, detect_anomaly: true}}
checkpoint: {every: 2h, keep_best: 1, best: val/zs/acc5}
evaluate:
  every: 1 epoch
  tasks: {zs: {kind: zero_shot, data: d, templates: ["a {c}: 'x' # é", "no", "1e3"]}, r: {kind: retrieval, data: e}}
logging: {every: 20 steps, csv: yes, wandb: {project: no, mode: offline}}
run: runs/x
"""


def test_a_small_file(load, folder):
    config = load_config("small.yaml")
    assert config.model.name == "ViT-B-32"
    assert config.data.batch_size == 32
    assert config.data.train["cc"].shards == ["/data/{00000..00009}.tar"]
    assert config.loss is None
    assert list(config.losses) == ["infonce"]
    assert config.trainer.length == Duration(100, "steps")


def test_a_large_file(load):
    config = load(LARGE)
    assert config.optim.lr == 0.001  # plain PyYAML reads 1e-3 as a text
    assert config.data.augment.affine.translate == (0.1, 0.1)
    assert config.logging.csv is True
    assert config.logging.wandb.project == "no"  # not false
    assert config.losses["other"].kind == "infonce"
    assert config.best_figure == "val/zs/acc5"


def test_checkpoints_go_by_data_by_a_clock_or_by_both(load):
    assert load(LARGE).checkpoint.by_data is None
    both = load(LARGE, {"checkpoint.every": ["10M samples", "30min"]}).checkpoint
    assert (both.by_data, both.by_clock) == (Duration(1e7, "samples"), Duration(1800, "seconds"))
    assert load(LARGE, {"checkpoint.every": "1 epoch"}).checkpoint.by_clock is None


def test_the_default_of_best_is_the_first_figure(load, folder):
    assert load(LARGE, {"checkpoint.best": None}).best_figure == "val/zs/acc1"
    assert load_config("small.yaml", ["data.val.v.shards=v.tar", "checkpoint.keep_best=1"]).best_figure == "val/loss"
    assert load_config("small.yaml").best_figure is None


@pytest.mark.parametrize("name", ["small.yaml", "large.yaml"])
def test_a_resolved_configuration_loads_back_to_the_same(folder, name):
    (folder / "large.yaml").write_text(LARGE)
    config = load_config(name)
    write_config(config, folder / "resolved.yaml")
    assert load_config("resolved.yaml") == config
    assert sorted(path.name for path in folder.iterdir()) == ["large.yaml", "resolved.yaml", "small.yaml"]


def test_overrides_as_texts_and_as_a_mapping_are_the_same(folder, load):
    texts = ["optim.lr=1e-3", "data.batch_size=32Ki", "optim.betas=[0.8, 0.9]", "run=runs/a b", "model=RN50:openai"]
    given = {
        "optim.lr": 0.001,
        "data.batch_size": 32768,
        "optim.betas": (0.8, 0.9),
        "run": folder,
        "model": "RN50:openai",
    }
    one, two = load_config("small.yaml", texts), load_config("small.yaml", given)
    assert describe_difference(one, two) == [f"run: runs/a b -> {folder}"]
    assert load_config("small.yaml", {"trainer.length": Duration(7, "steps")}).trainer.length.value == 7
    assert load_config("small.yaml", {"data.train.cc": one.data.train["cc"]}).data == load_config("small.yaml").data


def test_later_overrides_win_and_reach_into_lists_and_short_forms(folder):
    config = load_config(
        "small.yaml",
        [
            "optim.lr=1",
            "optim.lr=2",
            "optim.betas=[0.5, 0.6]",
            "optim.betas.1=0.7",
            "optim.betas[0]=0.4",
            "losses.infonce.weight=3",
            "model.pretrained=openai",
            "data.train.cc.shards=/d/{0..3}.tar",
        ],
    )
    assert config.optim.lr == 2
    assert config.optim.betas == (0.4, 0.7)
    assert config.losses["infonce"].weight == 3
    assert (config.model.name, config.model.pretrained) == ("ViT-B-32", "openai")
    assert config.data.train["cc"].shards == ["/d/{0..3}.tar"]


def test_a_short_form_on_the_command_line_can_be_added_to(folder):
    config = load_config("small.yaml", ["model=RN50", "model.pretrained=openai", "loss=infonce", "loss.weight=2"])
    assert (config.model.name, config.model.pretrained) == ("RN50", "openai")
    assert config.losses["infonce"].weight == 2


def test_a_base_lies_below(load, folder):
    sub = folder / "sub"
    sub.mkdir()
    (sub / "exp.yaml").write_text("base: ../small.yaml\ndata: {train: {more: {shards: m.tar}}}\nlogging:\n")
    config = load_config(sub / "exp.yaml", ["seed=4"])
    assert list(config.data.train) == ["cc", "more"]
    assert (config.data.batch_size, config.seed) == (32, 4)


def test_a_null_takes_a_named_entry_away(load):
    config = load("base: small.yaml\ndata: {train: {cc: null, other: {shards: o.tar}}}\n")
    assert list(config.data.train) == ["other"]
    assert "contrast" not in load(LARGE, ["losses.contrast=null"]).losses


def test_another_kind_drops_what_stood_beside_the_old_one(load, folder):
    task = "evaluate: {tasks: {t: {kind: zero_shot, data: d, templates: [x]}}}\n"
    (folder / "tasks.yaml").write_text((folder / "small.yaml").read_text() + task)
    config = load("base: tasks.yaml\nevaluate: {tasks: {t: {kind: retrieval, data: e}}}\n")
    assert config.evaluate.tasks["t"].model_dump(exclude_unset=True) == {"kind": "retrieval", "data": "e"}
    same = load("base: tasks.yaml\nevaluate: {tasks: {t: {kind: zero_shot, data: e}}}\n")
    assert same.evaluate.tasks["t"].templates == ["x"]


def test_another_model_drops_the_weights_of_the_old_one(load):
    load(LARGE.replace("pretrained: null", "pretrained: openai"), name="l.yaml")
    assert load("base: l.yaml\nmodel: {name: RN101}").model.pretrained is None
    assert load("base: l.yaml\nmodel: {name: RN50}").model.pretrained == "openai"
    assert load("base: l.yaml\nmodel: RN50").model.pretrained is None


def test_loss_and_losses_in_different_layers(load):
    assert list(load("base: small.yaml\nlosses: {c: infonce}\n").losses) == ["c"]
    load(LARGE, name="l.yaml")
    assert list(load("base: l.yaml\nloss: infonce\n").losses) == ["infonce"]


def test_loss_reaches_the_only_entry_of_losses(load, folder):
    (folder / "one.yaml").write_text(
        (folder / "small.yaml").read_text().replace("loss: infonce", "losses: {c: infonce}")
    )
    assert load_config("one.yaml", ["loss.weight=3"]).losses["c"].weight == 3


def test_references(load):
    text = LARGE.replace("weight: 2,", "weight: '${optim.lr}',").replace("{v: {shards: v.tar}}", "${data.train}")
    config = load(text.replace("seed: 7", "seed: ${data.workers}").replace("runs/x", "runs/${model.name}-${seed}"))
    assert config.data.train["a"].weight == 0.001
    assert config.data.val == config.data.train
    assert config.seed == 2
    assert config.run == "runs/RN50-2"


def test_anchors_and_merges(load):
    config = load(
        "base: small.yaml\n"
        "data:\n  train:\n    a: &a {shards: a.tar, weight: 2}\n    b: {<<: *a, weight: 3}\n    c: *a\n"
    )
    train = config.data.train
    assert (train["b"].shards, train["b"].weight, train["c"].weight) == (["a.tar"], 3, 2)


def test_sources_name_where_each_value_comes_from(load, folder):
    (folder / "exp.yaml").write_text("base: small.yaml\nseed: 1\ndata:\n  batch_size: 64\n")
    loaded = load_with_sources("exp.yaml", ["optim.lr=1"])
    assert set(loaded.sources) == set(flatten(loaded.config))
    assert loaded.sources["seed"] == "exp.yaml:2:1"
    assert loaded.sources["data.batch_size"] == "exp.yaml:4:3"
    assert loaded.sources["model.name"] == "small.yaml:1:1"
    assert loaded.sources["losses.infonce.kind"] == "small.yaml:5:1"
    assert loaded.sources["losses.infonce.weight"] == "default"
    assert loaded.sources["optim.lr"] == "command line"
    assert load_with_sources("exp.yaml", {"seed": 2}).sources["seed"] == "override"


def test_differences_are_named_key_by_key(load):
    one = load(LARGE)
    two = load(LARGE, ["optim.lr=5e-4", "data.train.b=null", "optim.clip_norm=null"])
    assert describe_difference(one, one) == []
    lines = describe_difference(one, two)
    assert "optim.lr: 0.001 -> 0.0005" in lines
    assert "optim.clip_norm: 1.0 -> unset" in lines
    assert "data.train.b.shards: ['embedded:train'] -> absent" in lines


def test_a_path_wins_over_a_shipped_name(folder, monkeypatch):
    package = folder / "site" / "clipkit"
    (package / "config").mkdir(parents=True)
    (package / "configs").mkdir()
    (package / "configs" / "tiny.yaml").write_text((folder / "small.yaml").read_text() + "seed: 5\n")
    monkeypatch.setattr("clipkit.config.catalog.__file__", str(package / "config" / "catalog.py"))
    assert load_config("tiny").seed == load_config("tiny.yaml").seed == 5
    (folder / "exp.yaml").write_text("base: tiny\nmodel: RN50\n")
    assert load_config("exp.yaml").seed == 5
    (folder / "tiny").write_text((folder / "small.yaml").read_text())
    assert load_config("tiny").seed == 0
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        load_config("tinny")


def test_shipped_configurations_are_found_in_a_checkout(folder, monkeypatch):
    from clipkit.config import shipped

    (folder / "configs" / "sub").mkdir(parents=True)
    (folder / "configs" / "sub" / "a.yaml").write_text("")
    monkeypatch.setattr("clipkit.config.catalog.__file__", str(folder / "clipkit" / "config" / "catalog.py"))
    assert shipped() == {}  # some other program's folder
    (folder / "pyproject.toml").write_text("")
    assert shipped() == {"sub/a": folder / "configs" / "sub" / "a.yaml"}


def test_every_shipped_configuration_loads():
    from clipkit.config import shipped

    for name, path in shipped().items():
        load_config(path, ["data.train=pairs.csv"] if name == "finetune" else [])
