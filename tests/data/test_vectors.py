"""Embeddings stored with the samples: read, drawn with their caption, refused where they are no plain array of floats."""

import io
import json
import tarfile

import numpy as np
import pytest

import clipkit
from clipkit.data.images import BadSample
from clipkit.data.source import Place
from clipkit.data.vectors import stacked, vector
from clipkit.towers.open_clip import build_pair

PLACES = (Place("i.npy"),)


def npy(array, **more):
    buffer = io.BytesIO()
    np.save(buffer, array, **more)
    return buffer.getvalue()


def read(data, draw=0.0, captions=1):
    return vector({"i.npy": data}, PLACES, draw, captions)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
def test_floats_of_any_width_become_float32(dtype):
    found = read(npy(np.array([0.5, -2.0], dtype)))
    assert (found.dtype, found.tolist()) == (np.float32, [0.5, -2.0])


def test_a_caption_gets_its_own_row():
    rows = npy(np.arange(6, dtype=np.float32).reshape(3, 2))
    assert [read(rows, draw, 3).tolist() for draw in (0.0, 0.34, 0.99)] == [[0, 1], [2, 3], [4, 5]]


def header(text):
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


HOSTILE = {
    "pickled": npy(np.array([{"a": 1}], dtype=object), allow_pickle=True),
    "huge": header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }\n"),
    "nested": header("(" * 9000 + ")" * 9000 + "\n"),
    "cut": npy(np.zeros(9, np.float32))[:-3],
    "integers": npy(np.zeros(9, np.int64)),
    "cube": npy(np.zeros((2, 2, 2), np.float32)),
    "empty": npy(np.zeros(0, np.float32)),
    "text": b"0.5 0.25",
    "nan": npy(np.array([np.nan], np.float32)),
    "rows": npy(np.zeros((2, 4), np.float32)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_array_of_floats_is_a_bad_sample(name):
    with pytest.raises(BadSample) as caught:
        read(HOSTILE[name])
    assert caught.value.cause == ("not_finite" if name == "nan" else "not_npy")


def test_a_missing_one_and_two_widths():
    with pytest.raises(BadSample, match=r"no member \.i\.npy"):
        vector({}, PLACES, 0.0, 1)
    assert stacked([]) == {}
    with pytest.raises(ValueError, match=r"teacher_image: a batch holds embeddings of widths \[2, 3\]"):
        stacked([{"teacher_image": np.zeros(2, np.float32)}, {"teacher_image": np.zeros(3, np.float32)}])


@pytest.fixture
def taught(shards, tiny_model):
    """The squares with embeddings that another model made; one of them is broken."""
    import torch
    from PIL import Image

    torch.manual_seed(1)
    teacher = build_pair(str(tiny_model))
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        with tarfile.open(path, "w") as tar, torch.no_grad():
            for name, data in members.items():
                stem, kind = name.split(".")
                if kind == "png":
                    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)[None]
                    vectors = {"img.npy": npy(teacher.image.eval()(pixels).pooled[0].numpy().astype("f2"))}
                else:
                    vectors = {"cap.npy": npy(teacher.text.eval()(teacher.tokenize([data.decode()])).pooled[0].numpy())}
                if stem == "00003":
                    vectors = dict.fromkeys(vectors, b"broken")
                for extension, content in {kind: data, **vectors}.items():
                    info = tarfile.TarInfo(f"{stem}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return shards


def settings(shards, model, **fields):
    return {
        "model": str(model),
        "data": {
            "train": {"squares": {"shards": str(shards / "*.tar"), "fields": {"image": "png", "text": "txt"} | fields}},
            "batch_size": 16,
            "workers": 0,
            "bad_samples": 0.05,
        },
        "losses": {"contrast": "infonce", "teacher": {"kind": "distillation", "weight": 0.5}},
        "optim": {"lr": 3e-3},
        "trainer": {"length": "6 epochs", "accelerator": "cpu"},
        "logging": {"every": "1 steps"},
    }


def test_a_run_learns_from_a_stored_teacher(taught, tiny_model, tmp_path, capsys):
    import yaml

    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings(taught, tiny_model, teacher_image="img.npy", teacher_text="cap.npy")))
    run = clipkit.fit(str(path), {"run": str(tmp_path / "run")})
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["train/loss/teacher"] < 0.8 * lines[0]["train/loss/teacher"]
    assert "not_npy" in capsys.readouterr().err


def test_a_source_without_the_teacher_s_embeddings_is_refused_before_anything_runs(shards, tiny_model, tmp_path):
    import yaml

    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings(shards, tiny_model, teacher_image="img.npy")))
    with pytest.raises(ValueError, match="the loss `teacher` reads teacher_text; name its .npy here"):
        clipkit.fit(str(path), {"run": str(tmp_path / "run")})
