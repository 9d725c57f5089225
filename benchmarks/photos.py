"""Photographs for the benchmarks of the data: crops of the two that scikit-learn ships, written into tars as img2dataset does.

scikit-learn's `china.jpg` and `flower.jpg` (BSD licence; 640 x 427) are real photographs that come with a package that the tests need
anyway; scipy and matplotlib bring none as files. Each crop is another part of one of them, at 512 x 512 pixels, JPEG quality 90, 4:2:0.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

LEAST, MOST = 20_000, 60_000  # bytes of a file
SHARD = 2000
_TEXT = "a photo of the old temple roof with red flower in bright morning light near a green wall"


def photographs(count: int, side: int = 512, seed: int = 0) -> list[bytes]:
    """JPEG files of different crops; of 512 pixels a side they are of 20 to 60 kB."""
    originals = [Image.fromarray(image) for image in load_sample_images().images]
    rng = np.random.default_rng(seed)
    found: list[bytes] = []
    while len(found) < count:
        original = originals[len(found) % 2]
        edge = int(rng.integers(200, original.height + 1))
        left, top = (int(rng.integers(0, length - edge + 1)) for length in original.size)
        crop = original.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + edge, top + edge))
        buffer = io.BytesIO()
        crop.save(buffer, "JPEG", quality=90, subsampling="4:2:0")
        if side != 512 or LEAST <= buffer.tell() <= MOST:
            found.append(buffer.getvalue())
    return found


def caption(number: int) -> str:
    """A caption of 6 to 18 words."""
    rng = np.random.default_rng(number)
    return " ".join(rng.choice(_TEXT.split(), int(rng.integers(6, 19)))) + f" {number}"


def samples(images: Sequence[bytes], first: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Members of so many samples: jpg, json and txt each; images come again where there are fewer."""
    for number in range(first, first + count):
        key, text, image = f"{number:09d}", caption(number), images[number % len(images)]
        record = {"key": key, "caption": text, "url": f"https://example.org/{key}.jpg", "width": 512, "height": 512}
        yield f"{key}.jpg", image
        yield f"{key}.json", json.dumps(record).encode()
        yield f"{key}.txt", text.encode()


def write_shards(folder: Path, images: Sequence[bytes], shards: int, size: int = SHARD) -> list[str]:
    """Tars of ``size`` samples each; the paths."""
    paths = []
    for shard in range(shards):
        paths.append(str(folder / f"{shard:05d}.tar"))
        with tarfile.open(paths[-1], "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in samples(images, shard * size, size):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return paths
