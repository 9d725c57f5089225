"""Folders that SentenceTransformer loads, compared from raw pictures and texts."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.export_models import build as build_small
from clipkit.encoder import Encoder
from clipkit.exporters.probes import Probes
from clipkit.exporters.prove import export_encoder, prove

from .conftest import TEXTS, build

pytest.importorskip("sentence_transformers")
from clipkit.exporters.sentence_transformers import SentenceTransformersFormat

FORMAT = SentenceTransformersFormat()


def test_sentence_transformers_loads_the_folder(vit: Encoder, photos: list[Image.Image], tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    out = tmp_path / "out"
    assert export_encoder(vit, FORMAT, out, images=photos, texts=TEXTS).held
    assert {"modules.json", "config_sentence_transformers.json"} <= {path.name for path in out.iterdir()}
    model = SentenceTransformer(str(out), device="cpu", local_files_only=True)
    found = model.encode([photos[0], photos[1]], convert_to_tensor=True)
    assert torch.allclose(found, vit.encode_image(photos[:2]), atol=1e-3)
    assert torch.allclose(model.encode(TEXTS, convert_to_tensor=True), vit.encode_text(TEXTS), atol=1e-5)


def test_siglip_is_padded_to_its_whole_context(photos: list[Image.Image], tmp_path: Path) -> None:
    encoder = build_small("siglip", tmp_path)
    export_encoder(encoder, FORMAT, tmp_path / "out", images=photos, texts=TEXTS)
    place = tmp_path / "out" / "sentence_bert_config.json"
    text = place.read_text()
    assert '"max_length"' in text
    place.write_text(text.replace('"max_length"', '"longest"'))
    report = prove(encoder, FORMAT, tmp_path / "out", Probes.of(photos, TEXTS))
    assert not {check.name: check for check in report.checks}["texts, whole path, in batches of 1"].held


def test_what_transformers_cannot_hold_is_refused() -> None:
    words = "^sentence_transformers is transformers' model and more: .* no class for the image tower ConvNeXt"
    with pytest.raises(ValueError, match=words):
        FORMAT.refuse(build("convnext"))
