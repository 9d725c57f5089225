"""Whole evaluations against CLIP_benchmark's own, on real pictures and a real model with random weights."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from clip_benchmark.datasets.builder import build_wds_dataset
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from torch import Tensor
from torch.utils.data import DataLoader

from clipkit import api
from clipkit.data.embedded import materialise
from clipkit.encoder import Encoder
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.retrieval import Retrieval
from clipkit.evaluation.zero_shot import ZeroShot
from clipkit.towers.open_clip import pair_from_config

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Any, Any, Any]:
    """An encoder, and what open_clip makes of its export. The pictures have the model's size: no resize differs."""
    torch.manual_seed(0)
    encoder = Encoder.from_pair(pair_from_config(CONFIG), model="tiny", pretrained=None)
    out = tmp_path_factory.mktemp("export") / "out"
    api.export(encoder, "open_clip", out)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{out}")
    return encoder, model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{out}")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return materialise(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("name", ["unseen", "subgroup"])
def test_zero_shot(both: Any, sets: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, model, preprocess, tokenizer = both
    data = build_wds_dataset(name, transform=preprocess, data_dir=str(sets[name]))
    loader = DataLoader(data.batched(64), batch_size=None)
    loader.dataset.classes = data.classes  # batching hides it
    with monkeypatch.context() as patch:  # theirs calls float() on an array of one element, which numpy 2.4 refuses
        plain = Tensor.numpy
        patch.setattr(Tensor, "numpy", lambda x, **how: x.squeeze() if x.shape == (1,) else plain(x, **how))
        theirs = zeroshot_classification.evaluate(
            model, loader, tokenizer, data.classes, data.templates, "cpu", amp=False
        )
    ours = ZeroShot(sets[name]).run(Encodings(encoder)).figures
    assert {key: ours[key] for key in theirs} == pytest.approx(theirs, abs=1e-9)
    assert ours["samples"] > 100


def test_retrieval(both: Any, sets: dict[str, Path]) -> None:
    encoder, model, preprocess, tokenizer = both
    data = build_wds_dataset("retrieval", transform=preprocess, data_dir=str(sets["retrieval"]))
    loader = DataLoader(
        data.batched(128, collation_fn=lambda rows: (torch.stack([r[0] for r in rows]), [r[1] for r in rows])),
        batch_size=None,
    )
    theirs = zeroshot_retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    ours = Retrieval(sets["retrieval"]).run(Encodings(encoder, workers=1)).figures
    assert {key: ours[key] for key in theirs} == pytest.approx(theirs, abs=1e-6)
    assert ours["captions"] == 3 * ours["samples"]
    assert ours["text_retrieval_recall@10"] > 0
