import ast
import importlib.util
from pathlib import Path

import pytest
import yaml

from clipkit.cli.main import run as command_line
from clipkit.config import load_config
from clipkit.config.from_open_clip import from_open_clip
from clipkit.config.open_clip_command import parse_command
from clipkit.config.open_clip_options import OPTIONS

MAIN = "-m open_clip_train.main --train-data x/{0..3}.tar"
ONE = f"torchrun --nproc-per-node 1 {MAIN}"


def params():
    """Every ``add_argument`` of the installed open_clip_train, read without importing it: it breaks beside webdataset 1.0."""
    spec = importlib.util.find_spec("open_clip")
    source = (Path(spec.origin).parent.parent / "open_clip_train" / "params.py").read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
            yield ast.literal_eval(node.args[0])[2:], {k.arg: ast.unparse(k.value) for k in node.keywords}


def test_every_option_of_open_clip_s_trainer_is_known_with_its_values():
    theirs = dict(params())
    assert set(theirs) == set(OPTIONS)
    for name, arguments in theirs.items():
        switch = arguments.get("action") == "'store_true'"
        takes = "switch" if switch else "several" if "nargs" in arguments else "one"
        assert OPTIONS[name].takes == takes or name == "use-bnb-linear", name


def test_every_option_is_translated_or_answered():
    values = {
        "dataset-type": "csv",
        "train-data-upsampling-factors": "2",
        "precision": "fp16",
        "device": "cpu",
        "opt": "timm/lamb",
        "lr-scheduler": "const-cooldown",
        "model": "ViT-L-14",
        "val-data": "y.tar",
        "imagenet-val": "folder",
        "resume": "latest",
        "report-to": "wandb",
        "aug-cfg": "scale=(0.5,1.0)",
    }
    beside = {  # what makes an option matter
        "csv-img-key": "--dataset-type csv",
        "csv-caption-key": "--dataset-type csv",
        "zeroshot-frequency": "--imagenet-val folder",
        "val-frequency": "--val-data y.tar",
        "wandb-project-name": "--report-to wandb",
        "lock-image-unlocked-groups": "--lock-image",
        "lock-text-unlocked-layers": "--lock-text",
    }
    for name, option in OPTIONS.items():
        if name == "train-data":
            continue
        plain = f"{ONE} {beside.get(name, '')}"
        given = "" if option.takes == "switch" else f" {values.get(name, 7)}"
        found = from_open_clip(f"{plain} --{name}{given}")
        answered = any(note.startswith(f"--{name}") for note in found.notes)
        assert answered or found.tree != from_open_clip(plain).tree, name


# The command lines of open_clip's README and docs, as they stand there.
README = {
    "single": (
        """python -m open_clip_train.main \\
    --save-frequency 1 \\
    --zeroshot-frequency 1 \\
    --report-to tensorboard \\
    --train-data="/path/to/train_data.csv"  \\
    --val-data="/path/to/validation_data.csv"  \\
    --csv-img-key filepath \\
    --csv-caption-key title \\
    --imagenet-val=/path/to/imagenet/root/val/ \\
    --warmup 10000 \\
    --batch-size=128 \\
    --lr=1e-3 \\
    --wd=0.1 \\
    --epochs=30 \\
    --workers=8 \\
    --model RN50""",
        1,
    ),
    "torchrun": (
        """cd open_clip/src
torchrun --nproc_per_node 4 -m open_clip_train.main \\
    --train-data '/data/cc12m/cc12m-train-{0000..2175}.tar' \\
    --train-num-samples 10968539 \\
    --dataset-type webdataset \\
    --batch-size 320 \\
    --precision amp \\
    --workers 4 \\
    --imagenet-val /data/imagenet/validation/""",
        None,
    ),
    "nodes": (
        """cd open_clip/src
torchrun --nproc_per_node=4 \\
    --rdzv_endpoint=$HOSTE_NODE_ADDR \\
    -m open_clip_train.main \\
    --train-data '/data/cc12m/cc12m-train-{0000..2175}.tar' \\
    --train-num-samples 10968539 \\
    --dataset-type webdataset \\
    --batch-size 320 \\
    --precision amp \\
    --workers 4 \\
    --imagenet-val /data/imagenet/validation/""",
        None,
    ),
    "slurm": (
        """srun --cpu_bind=v --accel-bind=gn python -u src/open_clip_train/main.py \\
    --save-frequency 1 \\
    --report-to tensorboard \\
    --train-data="/data/LAION-400M/{00000..41455}.tar" \\
    --warmup 2000 \\
    --batch-size=256 \\
    --epochs=32 \\
    --workers=8 \\
    --model ViT-B-32 \\
    --name "ViT-B-32-Vanilla" \\
    --seed 0 \\
    --local-loss \\
    --gather-with-grad""",
        128,
    ),
    "resume": (
        """python -m open_clip_train.main \\
    --train-data="/path/to/train_data.csv" \\
    --val-data="/path/to/validation_data.csv"  \\
    --resume /path/to/checkpoints/epoch_K.pt""",
        1,
    ),
    "finetune": (
        """python -m open_clip_train.main \\
    --train-data "pipe:aws s3 cp s3://bucket/{00000..00099}.tar -" \\
    --train-num-samples 1000000 \\
    --dataset-type webdataset \\
    --model roberta-ViT-B-32 --lock-text --lock-text-unlocked-layers 10""",
        4,
    ),
    "two sources": (
        """torchrun --nproc-per-node 8 --nnodes 8 -m open_clip_train.main --train-data "/a/{0..9}.tar::/b/{0..4}.tar"
        --train-data-upsampling-factors 1::2 --dataset-resampled --train-num-samples 5000 --epochs 4 --accum-freq 2""",
        None,
    ),
}


@pytest.mark.parametrize("name", README)
def test_the_command_lines_of_the_readme_become_configurations(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, world = README[name]
    found = from_open_clip(text, world=world)
    (tmp_path / "run.yaml").write_text(str(found))
    load_config("run.yaml")
    assert yaml.safe_load(str(found)) == found.tree


def test_what_the_numbers_become():
    tree = from_open_clip(README["two sources"][0]).tree
    assert tree["data"]["batch_size"] == 64 * 64 * 2  # a process's default batch, 64 processes, two of them accumulated
    assert tree["trainer"]["micro_batch"] == 64
    assert tree["trainer"]["length"] == "20000 samples"
    assert "devices" not in tree["trainer"]
    assert {name: source["weight"] for name, source in tree["data"]["train"].items()} == {"a": 10.0, "b": 10.0}
    tree = from_open_clip(README["single"][0], world=1).tree
    assert tree["data"]["train"] == {"train_data": {"loose": "/path/to/train_data.csv"}}
    assert tree["data"]["pack"] == {"image_column": "filepath", "caption_column": "title"}
    assert tree["trainer"] == {"length": "30 epochs", "accelerator": "gpu", "precision": "bf16-mixed"}
    assert tree["optim"] == {
        "lr": 1e-3,
        "weight_decay": 0.1,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "warmup": "10000 steps",
        "schedule": "cosine",
    }
    assert tree["evaluate"]["every"] == "1 epochs"
    tree = from_open_clip(README["torchrun"][0]).tree
    assert (tree["data"]["batch_size"], tree["trainer"]["devices"]) == (1280, 4)
    assert from_open_clip(README["slurm"][0], world=128).tree["run"] == "./logs/ViT-B-32-Vanilla"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"python {MAIN}", ["--batch-size", "--world-size N"]),
        (f"torchrun --nproc-per-node gpu {MAIN}", ["--world-size N"]),
        (f"torchrun --nnodes 1:4 --nproc-per-node 8 {MAIN}", ["--world-size N"]),
        ("torchrun train.py --lr 1", ["trainer is not in the command line"]),
        (f"{ONE} --learning-rate 1", ["--learning-rate", "no option"]),
        (f"{ONE} --wrm 1", ["did you mean --warmup"]),
        (f"{ONE} --lr", ["--lr takes a value"]),
        (f"{ONE} 'open", ["quotes"]),
        (f"{ONE} --dataset-type synthetic", ["made-up"]),
        ("torchrun -m open_clip_train.main --lr 1", ["--train-data is missing"]),
        (f"{ONE} --train-data-upsampling-factors 1::2", ["2 factors for 1 sources"]),
        (f"{ONE} --grad-clip-norm much", ["--grad-clip-norm much"]),
    ],
)
def test_what_cannot_be_translated(text, words, capsys):
    assert command_line(["config", "from-open-clip", text]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said


def test_a_synced_folder_becomes_a_place_for_copies():
    found = from_open_clip(f"{ONE} --remote-sync s3://bucket/runs/ --remote-sync-frequency 300 --name a")
    assert found.tree["checkpoint"]["copy_to"] == "s3://bucket/runs/a"
    assert any("remote-sync-frequency" in note for note in found.notes)
    found = from_open_clip(f"{ONE} --remote-sync /mnt/runs")
    assert "copy_to" not in found.tree["checkpoint"]
    assert any("file:///PATH" in note for note in found.notes)


def test_two_counts_that_disagree(capsys):
    assert command_line(["config", "from-open-clip", ONE, "--world-size", "2"]) == 2
    assert "the launcher starts 1 processes" in capsys.readouterr().err
    assert command_line(["config", "from-open-clip", f"python {MAIN}", "--world-size", "2"]) == 0
    assert "batch_size: 128" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "world"),
    [
        ("torchrun --nproc-per-node 8 --nnodes 8", 64),
        ("python -m torch.distributed.run --nproc_per_node=2", 2),
        ("torchrun", 1),
        ("CUDA_VISIBLE_DEVICES=0 srun -n 16 python", 16),
        ("srun --ntasks=4 python", 4),
        ("srun python", None),
        ("python", None),
    ],
)
def test_processes_of_a_launcher(text, world):
    assert parse_command(f"{text} -m training.main").world == world


@pytest.mark.parametrize(
    ("model", "bias"), [("ViT-B-16", -10.0), ("ViT-B-16-SigLIP", -10.0), ("ViT-B-16 --pretrained openai", 0.0)]
)
def test_siglip_becomes_the_sigmoid_loss_with_its_bias(model, bias, tmp_path):
    found = from_open_clip(f"{ONE} --siglip --model {model}")
    assert found.tree["loss"] == {"kind": "sigmoid", "bias": bias}
    # random weights start at open_clip's bias but not at its scale, which is said
    assert any(note.startswith("--siglip: ") and "not at 10" in note for note in found.notes) == (bias != 0)
    (tmp_path / "run.yaml").write_text(str(found))
    assert load_config(tmp_path / "run.yaml").losses["sigmoid"].bias == bias


def test_a_teacher_is_answered_with_stored_embeddings(tmp_path):
    found = from_open_clip(f"{ONE} --distill-model ViT-L-14 --distill-pretrained openai")
    answers = [note for note in found.notes if note.startswith("--distill")]
    assert len(answers) == 2
    assert all("`distillation`" in note and "teacher_image" in note for note in answers)
    assert found.tree["loss"] == "infonce"  # what is not asked for in the sources is not in the losses
    (tmp_path / "run.yaml").write_text(str(found))
    load_config(tmp_path / "run.yaml")
