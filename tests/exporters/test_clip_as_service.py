"""What clip-as-service's executor feeds its sessions with, and encoders that it would feed wrongly."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from clipkit.encoder import Encoder
from clipkit.exporters.formats import make_format
from clipkit.exporters.prove import export_encoder
from clipkit.loading import load_encoder
from clipkit.towers.open_clip import pair_from_config

from .conftest import CONFIGS, TEXT, TEXTS, build

FORMAT = make_format("clip_as_service")


def test_its_sessions_run(photos: list[Image.Image], tmp_path: Path) -> None:
    torch.manual_seed(0)
    pair = pair_from_config(CONFIGS["vit"] | {"text_cfg": TEXT | {"context_length": 77}})
    encoder = Encoder.from_pair(pair, model="77 tokens", pretrained=None)
    out = tmp_path / "out"
    assert export_encoder(encoder, FORMAT, out, images=photos, texts=TEXTS).held
    textual, visual = (onnxruntime.InferenceSession(str(out / f"{name}.onnx")) for name in ("textual", "visual"))
    tokens = encoder.tokenize(TEXTS).numpy().astype(np.int32)
    (found,) = textual.run(None, {"input_ids": tokens, "attention_mask": tokens})
    np.testing.assert_allclose(found, encoder.encode_text(TEXTS).numpy(), atol=1e-5)
    pixels = encoder.image.normalise(encoder.prepare(photos)).numpy()
    (found,) = visual.run(None, {"pixel_values": pixels})
    np.testing.assert_allclose(found, encoder.encode_image(photos).numpy(), atol=1e-5)
    assert torch.allclose(load_encoder(out)[0].encode_text(TEXTS), encoder.encode_text(TEXTS), atol=1e-5)


def test_what_it_would_feed_wrongly_is_refused(vit: Encoder) -> None:
    with pytest.raises(ValueError, match="77 tokens, this encoder has SimpleTokenizer and 16"):
        FORMAT.refuse(vit)
    with pytest.raises(ValueError, match="prepares images with mean"):
        FORMAT.refuse(build("convnext"))
