"""How fast 512-pixel JPEGs become embeddings on disk: pictures a second, the model of the demo, equal workers, batch and threads.

The peer is the loop that one would write with open_clip: its evaluation transform (Pillow) in a DataLoader, ``encode_image``,
normalise, ``np.save``. clipkit writes the same rows with its manifest and parquet; ``thumbnails_rate_ratio`` adds the thumbnails. Both may
use two threads; beside workers clipkit runs an encoder as small as this one in one.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from common import ROOT, figure, finish, quick
from photos import photographs
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset

from clipkit.embedding.embed import embed
from clipkit.encoder import Encoder
from clipkit.towers.open_clip import build_pair, open_clip_state_dict

BATCH, WORKERS = 64, 2


class Files(Dataset[Tensor]):
    """Pictures through open_clip's own evaluation transform."""

    def __init__(self, paths: list[Path], transform: object) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Tensor:
        with Image.open(io.BytesIO(self.paths[row].read_bytes())) as image:
            return self.transform(image)  # type: ignore[operator,no-any-return]


@torch.no_grad()
def peer(paths: list[Path], model: torch.nn.Module, transform: object, out: Path) -> None:
    """The plain loop."""
    rows = []
    for images in DataLoader(Files(paths, transform), BATCH, num_workers=WORKERS):
        rows.append(normalize(model.encode_image(images), dim=-1).half())  # type: ignore[operator]
    np.save(out, torch.cat(rows).numpy())


def main() -> int:
    """Both in turn over the same files."""
    short = quick(str(__doc__).partition("\n")[0])
    torch.set_num_threads(2)
    count, times = (1200, 2) if short else (3000, 5)
    name = str(ROOT / "configs" / "demo_model.json")
    pair = build_pair(name, None)
    encoder = Encoder.from_pair(pair, model=name, pretrained=None)
    config = pair.config
    model = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "photos").mkdir()
        for number, data in enumerate(photographs(count)):
            (root / "photos" / f"{number:05d}.jpg").write_bytes(data)
        paths = sorted((root / "photos").iterdir())
        theirs = model(**{key: value for key, value in config.items() if key != "custom_text"}).eval()
        theirs.load_state_dict(open_clip_state_dict(config, pair.image, pair.text, pair.log_scale, pair.bias))
        transform = open_clip.transform.image_transform_v2(
            open_clip.transform.PreprocessCfg(**pair.preprocess), is_train=False
        )
        bare, full = [], []
        for turn in range(times):
            marks = [time.perf_counter()]
            peer(paths, theirs, transform, root / "theirs.npy")
            marks.append(time.perf_counter())
            embed(encoder, root / "photos", root / f"{turn}", batch_size=BATCH, workers=WORKERS, thumbnail=0)
            marks.append(time.perf_counter())
            embed(encoder, root / "photos", root / f"{turn}t", batch_size=BATCH, workers=WORKERS)
            marks.append(time.perf_counter())
            spent = np.diff(marks)
            bare.append(float(spent[0] / spent[1]))
            full.append(float(spent[0] / spent[2]))
        ours = np.load(root / "0" / "img_emb" / "img_emb_00000.npy").astype(np.float32)
        cosine = (ours * np.load(root / "theirs.npy").astype(np.float32)[: len(ours)]).sum(1)
        assert cosine.min() > 0.99, f"a row differs from open_clip's: cosine {cosine.min():.4f}"
    print(f"{count} pictures, least cosine to open_clip's row {cosine.min():.5f}")
    figures = {"rate_ratio": figure(bare), "thumbnails_rate_ratio": figure(full)}
    return finish("embed", peer="open_clip's transform in a plain loop", figures=figures)


if __name__ == "__main__":
    sys.exit(main())
