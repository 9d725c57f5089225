"""Programs that torch.export.load takes, at any batch size, and what is not loaded from strangers."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from clipkit.encoder import Encoder
from clipkit.exporters.probes import Probes
from clipkit.exporters.prove import export_encoder, prove
from clipkit.exporters.torch_export import TorchExportFormat
from clipkit.loading import load_encoder
from clipkit.towers.open_clip import pair_from_config

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


def test_a_program_of_a_stranger_is_not_loaded(folder: Path) -> None:
    with pytest.raises(ValueError, match="can run any code of whoever wrote it"):
        load_encoder(folder)


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
