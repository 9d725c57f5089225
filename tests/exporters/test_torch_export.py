"""Programs that torch.export.load takes, at any batch size, and what is not loaded from strangers."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import clipkit
from benchmarks.export_models import build as build_small
from clipkit.cli.main import run
from clipkit.encoder import Encoder
from clipkit.exporters.embedders import example_image, image_embedder, quiet_tracing
from clipkit.exporters.formats import make_format
from clipkit.exporters.probes import Probes
from clipkit.exporters.prove import export_encoder, prove
from clipkit.exporters.torch_export import TorchExportFormat, trace
from clipkit.loading import load_pair
from clipkit.towers.open_clip import pair_from_config
from clipkit.towers.program import read_program
from tests.archives import CONSTANTS, EXAMPLES, MODEL, resized, rewrite

from .conftest import CONFIGS, TEXTS, build
from .test_onnx import bilinear, mean

FORMAT = TorchExportFormat()


@pytest.fixture(scope="module")
def folder(vit: Encoder, photos: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("program") / "out"
    assert export_encoder(vit, FORMAT, out, images=photos, texts=TEXTS).held
    return out


def test_files(folder: Path, vit: Encoder, photos: list[Image.Image]) -> None:
    textual = torch.export.load(folder / "textual.pt2").module()
    for size in (1, 2, 7):
        found = textual(vit.tokenize((TEXTS * 2)[:size]))
        assert torch.allclose(found, vit.encode_text((TEXTS * 2)[:size]), atol=1e-5)
    for name in ("visual", "textual"):
        with zipfile.ZipFile(folder / f"{name}.pt2") as archive:
            held = {member: archive.read(member) for member in archive.namelist()}
        assert not any(b"site-packages" in x or str(Path(__file__).parents[2]).encode() in x for x in held.values())


@pytest.mark.parametrize("name", ["convnext", "siglip"])
def test_other_towers(name: str, photos: list[Image.Image], tmp_path: Path) -> None:
    assert export_encoder(build(name), FORMAT, tmp_path / "out", images=photos, texts=TEXTS).held


def test_a_resnet_of_open_clip_is_no_stranger(tmp_path: Path) -> None:
    encoder = build_small("rn50", tmp_path)  # its modules have names such as downsample.-1
    program = trace(image_embedder(encoder), example_image(encoder, 2))
    program.example_inputs = None
    with quiet_tracing():
        torch.export.save(program, tmp_path / "visual.pt2")
    x = torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(read_program(tmp_path / "visual.pt2")(x), encoder.image(x).pooled, atol=1e-5, rtol=0)


def test_a_program_is_loaded_with_consent_alone(folder: Path, vit: Encoder, photos: list[Image.Image]) -> None:
    with pytest.raises(ValueError, match="can run any code of whoever wrote it; if you trust them, .* --trust-code"):
        clipkit.load(folder)
    encoder = clipkit.load(folder, trust_code=True)
    images = [*photos, Image.new("L", (37, 20), 90)]
    torch.testing.assert_close(encoder.encode_image(images), vit.encode_image(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_text(["", *TEXTS]), vit.encode_text(["", *TEXTS]), atol=1e-5, rtol=0)
    assert encoder.logit_scale == pytest.approx(vit.logit_scale)
    with pytest.raises(ValueError, match="holds torch.export programs and no weights; export onnx from the run itself"):
        make_format("onnx").refuse(encoder)
    with pytest.raises(ValueError, match="and no weights to start from"):
        load_pair(str(folder), None)


def test_the_command_line_measures_the_programs(
    folder: Path, vit: Encoder, photos: list[Image.Image], tmp_path: Path
) -> None:
    for number, photo in enumerate(photos):
        place = tmp_path / "classes" / ("temple" if number % 2 else "flower")
        place.mkdir(parents=True, exist_ok=True)
        photo.save(place / f"{number}.png")
    data = str(tmp_path / "classes")
    asked = ["evaluate", str(folder), "--data", data, "--out", str(tmp_path / "found.json")]
    assert run(asked) == 2
    assert run([*asked, "--trust-code"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    want = clipkit.evaluate(vit, data=data)
    for name in ("acc1", "mean_per_class_recall", "ece"):
        assert found["metrics"][name] == pytest.approx(want[name], abs=1e-4)
    assert found["model"] == str(folder)


def test_embed_and_search_take_them_too(
    folder: Path, photos: list[Image.Image], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    for number, photo in enumerate(photos):
        photo.save(tmp_path / "pictures" / f"{number}.png")
    rows = str(tmp_path / "rows")
    asked = ["embed", str(folder), str(tmp_path / "pictures"), "--out", rows]
    assert run(asked) == 2
    assert run([*asked, "--trust-code"]) == 0
    for more in (
        [],
        ["--trust-code"],
        ["--model", str(folder)],
    ):  # a manifest names the programs, and cannot vouch for them
        capsys.readouterr()
        assert run(["search", rows, "a yellow flower", *more]) == 2
        assert "--trust-code" in capsys.readouterr().err
    assert run(["search", rows, "a yellow flower", "--model", str(folder), "--trust-code"]) == 0
    assert "a yellow flower" in capsys.readouterr().out


def changed(folder: Path, place: Path, changes: dict[str, Any]) -> Path:
    """The folder with another ``textual.pt2``."""
    out = place / "changed"
    shutil.copytree(folder, out)
    (out / "textual.pt2").unlink()
    rewrite(folder / "textual.pt2", out / "textual.pt2", changes)
    return out


def node(key: str, value: Any) -> Callable[[Any], None]:
    return lambda program: program["graph_module"]["graph"]["nodes"][0].__setitem__(key, value)


def signature(program: Any) -> None:
    tree = {"type": "collections.defaultdict", "context": "null", "children_spec": []}
    program["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps([1, tree])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another member": ({"data/constants/opaque_obj_0": b"x"}, "it holds 'data/constants/opaque_obj_0'"),
    "machine code": ({"data/aotinductor/model/x.so": b"x"}, "only torch._inductor.aoti_load_package loads"),
    "examples": ({EXAMPLES: b"x"}, "example inputs, which are a pickle"),
    "pickles": ({CONSTANTS: lambda x: next(iter(x["config"].values())).update(use_pickle=True)}, "is a pickle"),
    "another place": (
        {CONSTANTS: lambda x: next(iter(x["config"].values())).update(path_name="opaque_obj_0")},
        "lies in",
    ),
    "guards": ({MODEL: lambda x: x["guards_code"].append("print(1)")}, "guards, which are Python code"),
    "a path into torch": ({MODEL: node("target", "torch.os.system")}, "'torch.os.system' is not an operator"),
    "a part of an operator": ({MODEL: node("target", "torch.ops.aten.add.__class__")}, "is not an operator"),
    "a file's operator": ({MODEL: node("target", "torch.ops.aten.from_file.default")}, "is not an operator"),
    "operator.methodcaller": ({MODEL: node("target", "_operator.methodcaller")}, "is not an operator"),
    "a registered handler": ({MODEL: node("target", "#x:y")}, "is not an operator"),
    "a name with code": ({MODEL: node("name", "x = print(1)")}, "is not a name"),
    "a key with code": ({MODEL: node("x();", 1)}, "is not a name"),
    "an expression": ({MODEL: resized("__import__('os').system('true')")}, "is not an expression of sizes"),
    "a long power": ({MODEL: resized("9**9**9**9")}, "is not an expression of sizes"),
    "a class of a tree": ({MODEL: signature}, "is not a nesting"),
    "no JSON": ({MODEL: b"{"}, "no program of an encoder alone"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_with_consent_a_program_is_still_held_to_what_an_encoder_needs(name: str, folder: Path, tmp_path: Path) -> None:
    changes, said = REFUSED[name]
    with pytest.raises(ValueError, match=re.escape(said)):
        clipkit.load(changed(folder, tmp_path, changes), trust_code=True)


def test_what_is_no_archive_is_said_to_be_none(folder: Path, tmp_path: Path) -> None:
    assert clipkit.load(changed(folder, tmp_path, {}), trust_code=True)  # the changes above are what is refused
    out = tmp_path / "changed"
    whole = (out / "textual.pt2").read_bytes()
    for data in (b"", b"PK", whole[: len(whole) // 2]):
        (out / "textual.pt2").write_bytes(data)
        with pytest.raises(ValueError, match="is no archive that torch.export wrote"):
            clipkit.load(out, trust_code=True)
    (out / "textual.pt2").unlink()
    rewrite(folder / "textual.pt2", out / "textual.pt2", {"data/weights/weight_0": b"\0" * 8})
    with pytest.raises(ValueError, match=r"torch\.export cannot load .*textual\.pt2: setStorage"):
        clipkit.load(out, trust_code=True)
    (out / "textual.pt2").unlink()
    with pytest.raises(ValueError, match=r"has no textual\.pt2"):
        clipkit.load(out, trust_code=True)


def rewritten(vit: Encoder, folder: Path, change: Callable[[Encoder], None], **config: Any) -> None:
    pair = pair_from_config(CONFIGS["vit"] | config)
    pair.image.load_state_dict(vit.image.state_dict())
    pair.text.load_state_dict(vit.text.state_dict())
    other = Encoder.from_pair(pair, model="other", pretrained=None)
    change(other)
    FORMAT.write(other, folder)


def gelu(folder: Path, vit: Encoder) -> None:
    rewritten(vit, folder, lambda other: None, quick_gelu=False)


def end_of_text(folder: Path, vit: Encoder) -> None:
    class Wrong:
        eot_token_id = 49406

        def __call__(self, texts: list[str]) -> torch.Tensor:
            return vit.tokenize(texts)

    def change(other: Encoder) -> None:
        other.tokenize = Wrong()

    rewritten(vit, folder, change)


def channels(folder: Path, vit: Encoder) -> None:
    def change(other: Encoder) -> None:
        weight: Any = other.image.model.conv1.weight
        weight.data = weight.data.flip(1)

    rewritten(vit, folder, change)


@pytest.mark.parametrize("harm", [gelu, bilinear, mean, end_of_text, channels])
def test_a_wrong_folder_is_caught(
    folder: Path, vit: Encoder, photos: list[Image.Image], tmp_path: Path, harm: Callable[[Path, Encoder], None]
) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    harm(tmp_path, vit)
    assert not prove(vit, FORMAT, tmp_path, Probes.of(photos, TEXTS)).held
