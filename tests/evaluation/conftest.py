"""Evaluation sets of coloured squares, and an encoder that sees colours and reads their names."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import webdataset
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from clipkit.data.transforms import Preprocess

COLOURS = {"red": (250, 10, 20), "green": (10, 240, 30), "blue": (20, 10, 230), "yellow": (230, 220, 15)}


class ColourEncoder:
    """Mean colour as image embedding; the sum of the colours named as text embedding. Right on every square."""

    device = torch.device("cpu")
    preprocess = Preprocess(size=(8, 8))

    def encode_image(self, images: Sequence[Tensor], *, batch_size: int = 64) -> Tensor:
        rows = [image.float().mean((1, 2)) for image in images]
        return normalize(torch.stack(rows), dim=1) if rows else torch.empty(0, 3)

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
        rows = [
            sum((torch.tensor(rgb).float() for name, rgb in COLOURS.items() if name in text), torch.ones(3))
            for text in texts
        ]
        return normalize(torch.stack(rows), dim=1) if rows else torch.empty(0, 3)


@pytest.fixture
def encoder() -> ColourEncoder:
    return ColourEncoder()


def png(colour: tuple[int, int, int], size: int = 12) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "png")
    return file.getvalue()


@pytest.fixture
def squares(tmp_path: Path) -> Callable[..., Path]:
    """Writes a set in CLIP_benchmark's layout: ten images over two shards."""

    def write(kind: str = "classification", names: Sequence[str] = tuple(COLOURS)) -> Path:
        root = tmp_path / f"wds_{kind}"
        (root / "test").mkdir(parents=True)
        for shard in range(2):
            with webdataset.TarWriter(str(root / "test" / f"{shard}.tar")) as sink:
                for sample in range(5):
                    label = (5 * shard + sample) % 4
                    fields: dict[str, object] = {
                        "__key__": f"s{5 * shard + sample:07d}",
                        "png": png(COLOURS[list(COLOURS)[label]]),
                    }
                    if kind == "retrieval":
                        name = list(COLOURS)[label]
                        fields["txt"] = f"a {name} square\nall {name}\\nand nothing else"
                    else:
                        fields["cls"] = label
                    sink.write(fields)
        (root / "test" / "nshards.txt").write_text("2\n")
        if kind == "classification":
            (root / "classnames.txt").write_text("\n".join(names) + "\n")
            (root / "zeroshot_classification_templates.txt").write_text("a {c} square\nit is {c}\n")
        else:
            (root / "dataset_type.txt").write_text(f"{kind}\n")
        return root

    return write
