"""A live teacher gives the loss and the gradient that its stored embeddings give, and is no part of what trains or is saved."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

import clipkit
from clipkit.losses.distillation import Distillation
from clipkit.module import CLIPModule
from clipkit.optim import Optim
from clipkit.towers.open_clip import open_clip_state_dict, pair_from_config
from clipkit.towers.scale import LogitScale
from clipkit.towers.teacher import Teacher
from clipkit.towers.towers import Towers
from tests.conftest import TINY_MODEL

WIDE = TINY_MODEL | {"embed_dim": 24}
NAMES = ("teacher_image", "teacher_text")
TEXTS = ["a red square", "number seven", "", "a " * 20, "blue", "green circle"]


def module_of(student, teachers):
    torch.manual_seed(3)
    scale = LogitScale(student.log_scale, None)
    optim = Optim(lr=1e-3, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-6, warmup=0, schedule="cosine", steps=9)
    return CLIPModule(
        towers=Towers({"image": student.image, "text": student.text}),
        losses={"teacher": Distillation(scale.forward, teacher=NAMES, teacher_scale=30.0)},
        weights={"teacher": 1.0},
        scales={"image_text": scale},
        optim=optim,
        seed=0,
        teachers=teachers,
    )


def step(module, batch):
    module.zero_grad()
    loss = module.training_step(batch, 0)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_live_and_stored_are_one_loss_and_one_gradient(micro_batch):
    torch.manual_seed(0)
    student, teacher = pair_from_config(TINY_MODEL), pair_from_config(WIDE)
    live = Teacher(teacher, student, names=NAMES)
    module = module_of(student, [live]).double().train()
    module.towers.micro_batch = micro_batch
    size = student.preprocess["size"]
    images, tokens = torch.randint(0, 256, (6, 3, *size), dtype=torch.uint8), student.tokenize(TEXTS)
    batch = {"image": images, "text": tokens, "key": list(TEXTS), "id": torch.arange(6)}
    batch["lengths"] = module.towers.lengths(batch)
    with torch.no_grad():
        stored = dict(zip(NAMES, (teacher.image(images).pooled, teacher.text(tokens).pooled), strict=True))
    got, want = step(module, batch), step(module_of(student, []).double().train(), batch | stored)
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-6)
    for name, gradient in want[1].items():
        torch.testing.assert_close(got[1][name], gradient, rtol=1e-5, atol=1e-6)
    assert got[0] > 1e-3
    assert all(p.grad is None for p in live.parameters())
    assert not any(child.training for child in live.modules())


def test_it_is_no_part_of_the_module_but_moves_with_it():
    student = pair_from_config(TINY_MODEL)
    live = Teacher(pair_from_config(WIDE), student, names=NAMES)
    with_it, without = module_of(student, [live]), module_of(student, [])
    assert list(with_it.state_dict()) == list(without.state_dict())
    assert [name for name, _ in with_it.named_parameters()] == [name for name, _ in without.named_parameters()]
    with_it.double()
    assert {p.dtype for p in live.parameters()} == {torch.float64}


def test_images_are_resized_to_the_teacher_s_own_size():
    student = pair_from_config(TINY_MODEL)
    vision = WIDE["vision_cfg"]
    large = pair_from_config(WIDE | {"vision_cfg": vision | {"image_size": 2 * vision["image_size"]}})
    live, seen = Teacher(large, student, names=NAMES), []
    large.image.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    flat = torch.arange(0, 250, 50, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, *student.preprocess["size"])
    features = live({"image": flat, "text": student.tokenize(["a"] * 5)})
    assert tuple(seen[0].shape[2:]) == live.size
    assert seen[0].dtype == torch.uint8
    assert torch.equal(seen[0][:, :, :1, :1], flat[:, :, :1, :1])  # one colour stays that colour
    assert features["teacher_image"].pooled.shape == (5, 24)


def test_a_teacher_that_reads_other_tokens_is_refused():
    other = TINY_MODEL | {"text_cfg": TINY_MODEL["text_cfg"] | {"context_length": 9}}
    with pytest.raises(ValueError, match="big does not tokenize as the student does .contexts of 9 and .* store its"):
        Teacher(pair_from_config(other), pair_from_config(TINY_MODEL), names=NAMES, place="big")


@pytest.fixture
def taught(tmp_path, shards):
    """A run's configuration whose teacher is a checkpoint beside its configuration, and the teacher's weights."""
    from tests.test_training import write_config

    torch.manual_seed(5)
    pair = pair_from_config(WIDE)
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": WIDE, "preprocess_cfg": pair.preprocess}))
    state = open_clip_state_dict(WIDE, pair.image, pair.text, pair.log_scale, pair.bias)
    torch.save({"state_dict": state}, folder / "epoch_1.pt")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY_MODEL))
    path = write_config(tmp_path, tmp_path / "tiny.json", shards)
    tree = yaml.safe_load(path.read_text())
    tree.pop("loss", None)
    live = {"kind": "distillation", "teacher_model": str(folder / "epoch_1.pt"), "teacher_scale": 20.0}
    tree["losses"] = {"contrast": "infonce", "teacher": live}
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_learns_from_a_live_teacher_and_does_not_save_it(devices, taught, tmp_path, capfd):
    options = {"run": str(tmp_path / "run"), "trainer.length": "4 steps", "trainer.devices": devices}
    run = clipkit.fit(taught, options | {"logging.every": "1 steps"})
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train/loss/teacher"] > 0
    newest = max((run.folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    assert not [key for key in load_file(newest / "model.safetensors") if "teacher" in key]
    assert "frozen" in capfd.readouterr().err


def test_random_and_clashing_teachers_are_refused(taught, tmp_path):
    with pytest.raises(ValueError, match="losses.teacher.teacher_model=.*random weights"):
        clipkit.fit(taught, {"run": str(tmp_path / "run"), "losses.teacher.teacher_model": str(tmp_path / "tiny.json")})
    more = {"losses.other.kind": "distillation", "losses.other.teacher_model": "ViT-B-32"}
    with pytest.raises(ValueError, match=r"losses.other.teacher_model=ViT-B-32: .* another model"):
        clipkit.fit(taught, {"run": str(tmp_path / "run"), **more})
