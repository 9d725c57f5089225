"""What is said about each kind of fault, word for word where the words matter."""

import pytest

from clipkit.config import ConfigError, load_config
from clipkit.config.evaluate import ZeroShotSpec
from clipkit.config.lightning_keys import REFUSED
from clipkit.config.units import DURATION_HELP

SMALL = """\
model: ViT-B-32
data:
  train: {cc: {shards: a.tar}}
  batch_size: 32
loss: infonce
trainer: {length: 100 steps}
"""


def test_all_at_once_from_every_layer(folder, report):
    (folder / "low.yaml").write_text(SMALL.replace("batch_size: 32", "batch_size: 0") + "optim: {lrr: 1}\n")
    lines = report("base: low.yaml\ntrainer:\n  length: 500\n  precison: bf16-mixed\n", ["seed=x", "optm.lr=3", "foo"])
    assert lines == [
        "command line: optm.lr = 3: unknown key; did you mean 'optim'?",
        "    allowed: checkpoint, data, evaluate, guard, logging, loss, losses, model, optim, run, seed, trainer",
        "command line: foo: no value; write key=value, as in optim.lr=1e-3",
        "command line: seed = 'x': must be a whole number",
        "exp.yaml:3:3: trainer.length = 500: a bare number has no unit; write a number with a unit, such as "
        "'128M samples', '30 epochs', '500 steps' or '2h'",
        "exp.yaml:4:3: trainer.precison = 'bf16-mixed': unknown key; did you mean 'precision'?",
        "    allowed: accelerator, allow_batchnorm, compile, deterministic, devices, length, lightning, micro_batch, nodes, precision, "
        "strategy, timeouts",
        "low.yaml:4:3: data.batch_size = 0: must be greater than or equal to 1",
        "low.yaml:7:9: optim.lrr = 1: unknown key; did you mean 'lr'?",
        "    allowed: betas, clip_norm, ema, eps, layer_decay, lr, schedule, warmup, weight_decay",
    ]


def test_the_head_counts(folder):
    (folder / "exp.yaml").write_text(SMALL)
    with pytest.raises(ConfigError, match=r"^exp\.yaml: 2 errors\n") as caught:
        load_config("exp.yaml", ["seed=x", "optim.lr=x"])
    assert len(caught.value.problems) == 2
    with pytest.raises(ValueError, match=r"^exp\.yaml: 1 error\n"):
        load_config("exp.yaml", ["seed=x"])


COUNT = "expected a count such as 4096, 2_000, 1e5, 10M or 32Ki (k = 1,000, Ki = 1,024)"
LIGHT = "allowed: benchmark, detect_anomaly, enable_autolog_hparams, enable_model_summary, enable_progress_bar, "
LOSSES = "infonce, sigmoid, distillation, triplet, mutual_information, slip, sogclr"
ONE_FAULT = {
    "optim.schedule=cosin": [
        "optim.schedule = 'cosin': not one of the choices; did you mean 'cosine'?",
        "    allowed: cosine, constant",
    ],
    "optim.lr=-1": ["optim.lr = -1: must be greater than or equal to 0"],
    "optim.lr='1e-3'": ["optim.lr = '1e-3': must be a number"],
    "optim.lr=true": ["optim.lr = True: must be a number"],
    "optim.lr=.nan": ["optim.lr = nan: must be a finite number"],
    "optim.betas=[0.9]": ["optim.betas.1: missing: an item of the list"],
    "optim.betas=[0.9, 0.9, 0.9]": ["optim.betas = [0.9, 0.9, 0.9]: must hold 2 values"],
    "optim.betas=[0.9,1.0]": ["optim.betas.1 = 1.0: must be less than 1"],
    "optim.betas=0.9": ["optim.betas = 0.9: must be a list"],
    "optim.betas.5=0.9": ["optim.betas: must be a list"],
    "optim=adam": ["optim = 'adam': must be a mapping"],
    "optim.warmup=2h": ["optim.warmup = '2h': a time cannot stand here; write samples, epochs or steps"],
    "optim.warmup=200 steps": ["optim.warmup = '200 steps': is longer than the run (100 steps)"],
    "trainer.length=0 steps": ["trainer.length = '0 steps': must be above zero"],
    "trainer.compile=perhaps": ["trainer.compile = 'perhaps': must be true or false"],
    "trainer.devices=many": [f"trainer.devices = 'many': {COUNT}"],
    "trainer.devices=0": ["trainer.devices = 0: must be 1 or more"],
    "trainer.micro_batch=64": ["trainer.micro_batch = 64: is above the whole batch (data.batch_size is 32)"],
    "trainer.lightning={benchmrk: true}": [
        "trainer.lightning.benchmrk = True: is no argument of Lightning's Trainer; did you mean 'benchmark'?",
        f"    {LIGHT}inference_mode, profiler, sync_batchnorm",
    ],
    "data.batch_size=many": [f"data.batch_size = 'many': {COUNT}"],
    "data.batch_size=1.5": ["data.batch_size = 1.5: 1.5 is not a whole number"],
    "data.train={cc: {shards: []}}": ["data.train.cc.shards = []: must not be empty"],
    "data.train={cc: {shards: ''}}": ["data.train.cc.shards = '': must not be empty"],
    "data.train={cc: x.tar}": ["data.train.cc = 'x.tar': must be a mapping"],
    "data.train={a/b: {shards: x}}": [
        "data.train.a/b: a name holds letters, digits, '-' and '_' only: it is in override paths and metrics"
    ],
    "data.train.cc.weight=0": ["data.train.cc.weight = 0: must be greater than 0"],
    "data.train.cc.fields.image='*.jpg'": [
        "data.train.cc.fields.image = '*.jpg': '*.jpg' is neither an extension such as 'jpg' nor 'json.KEY'"
    ],
    "data.train.cc.fields={image: jpg}": [
        "data.train.cc.fields: the loss `infonce` pairs image and text; missing: text"
    ],
    "data.augment.scale=[1.0, 0.5]": ["data.augment.scale = [1.0, 0.5]: the first number must not be above the second"],
    "data.augment.fill=300": ["data.augment.fill = 300: not one of the choices", "    allowed: white, black"],
    "data.train={a/b: x.tar}": [
        "data.train.a/b = 'x.tar': a name holds letters, digits, '-' and '_' only: it is in override paths and metrics, "
        "or must be a mapping"
    ],
    "data.augment.scale=[0.5, 2]": ["data.augment.scale.1 = 2: must be less than or equal to 1"],
    "loss.weight=-2": ["loss.weight = -2: must be greater than 0"],
    "loss.kind=softmax": ["loss.kind = 'softmax': not one of the choices", f"    allowed: {LOSSES}"],
    "losses={a: {weight: 2}}": ["losses.a.kind: missing: Which loss this is.", f"    allowed: {LOSSES}"],
    "losses={}": ["losses: must not be empty"],
    "losses.infonce.pair=[image, image]": [
        "losses.infonce.pair = ['image', 'image']: a field cannot be paired with itself"
    ],
    "evaluate.tasks={t: {kind: zeroshot, data: x}}": [
        "evaluate.tasks.t.kind = 'zeroshot': not one of the choices; did you mean 'zero_shot'?",
        "    allowed: zero_shot, retrieval, multi_label, compositional, linear_probe, knn",
    ],
    "evaluate.tasks={t: {data: x}}": [
        "evaluate.tasks.t.kind: missing: Which task this is.",
        "    allowed: zero_shot, retrieval, multi_label, compositional, linear_probe, knn",
    ],
    "evaluate.tasks={t: {kind: retrieval, data: x, templates: [a]}}": [
        "evaluate.tasks.t.templates = ['a']: unknown key",
        "    allowed: data, groups, images, kind, split",
    ],
    "evaluate.every=5 steps": ["evaluate.every = '5 steps': nothing to evaluate: give `evaluate.tasks` or `data.val`"],
    "checkpoint.every=5": [f"checkpoint.every = 5: a bare number has no unit; write {DURATION_HELP}"],
    "checkpoint.every=[5 steps, 1 epochs]": [
        "checkpoint.every = ['5 steps', '1 epochs']: two intervals are one of samples, epochs or steps and one of time, as "
        "[10M samples, 30min]"
    ],
    "checkpoint.copy_to=/mnt/copies": [
        "checkpoint.copy_to = '/mnt/copies': is no place for copies; write s3://BUCKET/PATH, gs://BUCKET/PATH or file:///PATH"
    ],
    "checkpoint={keep_best: 1}": ["checkpoint.keep_best = 1: no figure to go by: give `evaluate.tasks` or `data.val`"],
    "checkpoint={keep_best: 1, best: val/t/acc1}": [
        "checkpoint.best = 'val/t/acc1': names no figure of this run; it evaluates nothing"
    ],
    "model.pretraned=x": [
        "model.pretraned = 'x': unknown key; did you mean 'pretrained'?",
        "    allowed: lock, name, patch_dropout, pretrained",
    ],
    "seed.x=1": ["seed: must be a whole number"],
    "base=other.yaml": ["base: `base` is read from the file only"],
    "seed": ["seed: no value; write key=value, as in optim.lr=1e-3"],
    "=3": ["no key; write key=value, as in optim.lr=1e-3"],
    "run={a": ["run: the value is not YAML: expected ',' or '}', but got '<stream end>'; put it in quotes"],
    "run=a: b": ["run: the value is not YAML: mapping values are not allowed here; put it in quotes"],
    "run=!!python/name:os.system x": [
        "run: the value is tags are not allowed here: tag:yaml.org,2002:python/name:os.system; put it in quotes"
    ],
}


@pytest.mark.parametrize("override", ONE_FAULT)
def test_one_fault(report, override):
    expected = ONE_FAULT[override]
    assert report(SMALL, [override]) == [f"command line: {expected[0]}", *expected[1:]]


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_each_option_of_lightning_that_would_break_a_promise_says_why(report, key):
    assert report(SMALL, {"trainer.lightning": {key: 1}}) == [
        f"override: trainer.lightning.{key} = 1: refused: {REFUSED[key]}"
    ]


def test_best_must_name_a_figure(report):
    text = SMALL + "evaluate: {tasks: {t: {kind: zero_shot, data: d}}}\n"
    assert report(text + "checkpoint:\n  keep_best: 1\n  best: val/t/acc2\n") == [
        "exp.yaml:10:3: checkpoint.best = 'val/t/acc2': names no figure of this run; one of: "
        + ", ".join(f"val/t/{name}" for name in ZeroShotSpec(kind="zero_shot", data="d").figures)
    ]
    assert report(text + "checkpoint:\n  best: val/t/acc1\n") == [
        "exp.yaml:9:3: checkpoint.best = 'val/t/acc1': has no effect while `checkpoint.keep_best` is 0"
    ]


def test_deterministic_and_benchmark(report):
    assert report(SMALL, ["trainer.deterministic=true", "trainer.lightning.benchmark=true"]) == [
        "command line: trainer.lightning.benchmark = True: lets cuDNN pick kernels by timing, against "
        "`trainer.deterministic`"
    ]


def test_loss_and_losses_together(report):
    assert report(SMALL + "losses: {a: infonce}\nseed: x\n") == [
        "exp.yaml:5:1: loss: `loss` and `losses` are both given; keep one (`loss` is short for one entry)",
        "exp.yaml:8:1: seed = 'x': must be a whole number",
    ]


def test_faults_over_several_parts_show_beside_faults_of_one(report):
    lines = report(SMALL + "optim: {lrr: 1}\nevaluate: {every: 5 steps}\n")
    assert [line.split(" = ")[0] for line in lines if not line.startswith(" ")] == [
        "exp.yaml:7:9: optim.lrr",
        "exp.yaml:8:12: evaluate.every",
    ]


def test_what_follows_from_another_fault_is_not_said(report):
    assert len(report(SMALL.replace("a.tar", "''"))) == 1  # not also: data.train is empty
    assert len(report(SMALL.replace("loss: infonce", "loss: infonec"))) == 2  # one fault and what is allowed


def test_missing_keys_point_at_their_parent(report):
    assert report("model: ViT-B-32\nloss: infonce\ntrainer:\n  devices: 1\ndata: {train: {a: {}}}\n") == [
        "exp.yaml:3:1: trainer.length: missing: How much to train: samples, epochs or steps.",
        "exp.yaml:5:1: data.batch_size: missing: Pairs per optimiser step over all ranks; a multiple of the ranks.",
        "exp.yaml:5:16: data.train.a.shards: missing: the source's tars, or `loose` with a CSV or folder",
    ]
    assert [line.split(":")[1].strip() for line in report("")] == ["model", "data", "trainer"]


def test_values_left_open(report):
    assert report(SMALL.replace("100 steps", "'???'").replace("a.tar", "'???'")) == [
        "exp.yaml:3:16: data.train.cc.shards: left open by this configuration; give it on the command line: "
        "data.train.cc.shards=VALUE",
        "exp.yaml:6:11: trainer.length: left open by this configuration; give it on the command line: "
        "trainer.length=VALUE",
    ]


def test_ranks_must_divide_the_batch(report):
    assert report(SMALL, ["trainer.devices=5"]) == [
        "exp.yaml:4:3: data.batch_size = 32: is no multiple of the 5 ranks (trainer.devices x trainer.nodes); "
        "take 30 or 35"
    ]


def test_an_option_in_place_of_an_override(report):
    assert report(SMALL, ["--seed=3"])[0] == "command line: --seed = 3: unknown key; did you mean 'seed'?"


def test_an_item_beyond_the_end_of_a_list(report):
    assert report(SMALL + "optim: {betas: [0.9, 0.9]}\n", ["optim.betas.5=0.9"]) == [
        "command line: optim.betas.5: the list has 2 items, counted from 0"
    ]


def test_no_sources(report):
    assert report(SMALL.replace("{cc: {shards: a.tar}}", "{}"))[0] == "exp.yaml:3:3: data.train: must not be empty"


def test_no_loss(report):
    assert report(SMALL.replace("loss: infonce\n", "")) == ["exp.yaml: losses: no loss is given; write `loss: infonce`"]


def test_lines_through_anchors_merges_and_lists(report):
    text = SMALL.replace(
        "train: {cc: {shards: a.tar}}", "train:\n    a: &a\n      shards: [x, '']\n      wight: 1\n    b: {<<: *a}"
    )
    assert [line for line in report(text) if "allowed" not in line] == [
        "exp.yaml:5:19: data.train.a.shards.1 = '': must not be empty",
        "exp.yaml:5:19: data.train.b.shards.1 = '': must not be empty",
        "exp.yaml:6:7: data.train.a.wight = 1: unknown key; did you mean 'weight'?",
        "exp.yaml:6:7: data.train.b.wight = 1: unknown key; did you mean 'weight'?",
    ]


def test_bases(report, folder):
    (folder / "low.yaml").write_text("base: small.yaml\n" + SMALL)
    assert report("base: low.yaml\n") == [
        "low.yaml:1:1: base: a base has no base of its own; it is the base of exp.yaml"
    ]
    missing = "exp.yaml:7:1: base = 'smal.yaml': no such file, and no shipped configuration of that name"
    assert report(SMALL + "base: smal.yaml\n")[0] == missing
    assert "base = 3: must be a text" in report(SMALL + "base: 3\n")[0]
    (folder / "low.yaml").write_text("a: [")
    assert report("base: low.yaml\n")[0].startswith("low.yaml:1:5: not YAML")


def test_no_such_file(folder):
    with pytest.raises(ConfigError, match=r"nothing\.yaml: no such file, and no shipped configuration of that name"):
        load_config("nothing.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\nb: 2", "exp.yaml:2:2: not YAML: expected ',' or ']', but got ':'"),
        ("a:\n\tb: 1", "exp.yaml:2:1: not YAML: found character '\\t' that cannot start any token"),
        ("a: b: c", "exp.yaml:1:5: not YAML: mapping values are not allowed here"),
        ("a: *x", "exp.yaml:1:4: not YAML: found undefined alias 'x'"),
        ("a: 1\n---\nb: 2", "exp.yaml:2:1: not YAML: but found another document"),
        ("- a", "exp.yaml:1:1: must be a mapping of keys to values"),
        ("just text", "exp.yaml:1:1: must be a mapping of keys to values"),
        ("a: &a [*a]", "exp.yaml:1:4: not YAML: an alias holds itself"),
        ("a: &a {<<: *a}", "exp.yaml:1:4: not YAML: << takes another mapping"),
        ("a: \x01", "exp.yaml: not YAML: unacceptable character #x0001: special characters are not allowed"),
        ("[" * 3000, "exp.yaml: nested too deeply"),
    ],
)
def test_no_yaml(report, text, said):
    assert report(text) == [said]


def test_aliases_that_expand_without_end_are_refused(report):
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    assert "aliases expand to more than 100,000 values" in report(text)[0]


def test_a_file_that_is_no_text(folder):
    (folder / "exp.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config("exp.yaml")


def test_duplicate_keys_are_all_named(report):
    lines = report(SMALL + "seed: 1\noptim:\n  lr: 1\n  lr: 2\nseed: 2\n")
    assert lines == [
        "exp.yaml:10:3: optim.lr: the key stands twice; first in line 9",
        "exp.yaml:11:1: seed: the key stands twice; first in line 7",
    ]


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!!binary aGk=", "!x 1", "!!set {a}"]
)
def test_tags_are_refused(report, tag):
    assert "tags are not allowed here" in report(SMALL + f"run: {tag}\n")[0]


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:SECRET}",
        "${oc.env:SECRET,x}",
        "${oc.decode:x}",
        "a${oc.env:SECRET}b",
        "${${model.name}:SECRET}",
        "${oc.env:${seed}}",
        "\\${model.name}",
        "${",
        "${}",
        "$${oc.env:SECRET}",
        "${model.name}${oc.env:SECRET}",
        "${ oc.env:SECRET }",
    ],
)
def test_interpolations_that_could_read_anything_are_refused(report, value, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    quoted = value.replace("'", "''")
    for lines in (report(SMALL + f"run: '{quoted}'\n"), report(SMALL, {"run": value})):
        assert "only plain references such as ${data.batch_size} are allowed" in "\n".join(lines)
        assert "hunter2" not in "\n".join(lines)


def test_references_cannot_put_a_resolver_together(report, monkeypatch):
    monkeypatch.setenv("SECRET", "hunter2")
    lines = report(
        "model: {name: '$', pretrained: '${model.name}{oc.env:SECRET}'}\nrun: '${model.pretrained}'\n"
        + SMALL.removeprefix("model: ViT-B-32\n")
    )
    assert lines == [
        "exp.yaml:1:20: model.pretrained = '${model.name}{oc.env:SECRET}': "
        "references must not put a new ${...} together",
        "exp.yaml:2:1: run = '${model.pretrained}': references must not put a new ${...} together",
    ]


def test_references_that_lead_nowhere_and_round(report):
    lines = report(SMALL + "run: ${modell.name}\nseed: ${seed}\n")
    assert lines[0].startswith("exp.yaml:7:1: run = '${modell.name}': the reference leads nowhere")
    assert lines[1].startswith("exp.yaml:8:1: seed = '${seed}': the reference leads nowhere")
    assert len(lines) == 2


def test_an_override_of_another_type_is_named(report):
    assert report(SMALL, {"run": object, "optim.lr": b"x"}) == [
        "override: run: a type cannot stand in a configuration",
        "override: optim.lr: a bytes cannot stand in a configuration",
    ]


def test_one_text_is_no_list_of_overrides(folder):
    with pytest.raises(TypeError, match="not one text"):
        load_config("small.yaml", "seed=1")
