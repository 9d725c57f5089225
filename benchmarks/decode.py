"""How fast photographs become training images: decode, RandomResizedCrop(224), normalised float CHW, on one thread.

The peer is open_clip's own training transform (Pillow). Both draw their crops from the same range. Equal crop boxes give the largest
difference of a pixel, of 255, before normalisation.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import open_clip
import torch
from common import figure, finish, quick
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.transform import image_transform
from photos import photographs
from PIL import Image
from torch import Tensor

from clipkit.data.augment import Augment, crop_boxes
from clipkit.data.draws import CROP, uniforms
from clipkit.data.images import decode_image
from clipkit.data.pixels import resize_as_pillow

SIZE, BATCH, SEED = 224, 32, 0
SCALES = {"": (0.9, 1.0), "_small_crops": (0.4, 1.0)}  # open_clip's default, and a stronger one


def clipkit_images(files: Sequence[bytes], scale: tuple[float, float]) -> Iterator[Tensor]:
    """Batches of float32 (B, 3, 224, 224)."""
    augment = Augment((SIZE, SIZE), scale=scale)
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    for start in range(0, len(files), BATCH):
        images = [decode_image(data) for data in files[start : start + BATCH]]
        pixels = augment(images, seed=SEED, positions=np.arange(start, start + len(images)))
        yield pixels.float().sub_(mean).div_(std)  # as the image tower does in training


def open_clip_images(files: Sequence[bytes], scale: tuple[float, float]) -> Iterator[Tensor]:
    """Batches of float32 (B, 3, 224, 224)."""
    transform = image_transform(SIZE, is_train=True, aug_cfg={"scale": scale})
    for start in range(0, len(files), BATCH):
        yield torch.stack([transform(Image.open(io.BytesIO(data))) for data in files[start : start + BATCH]])


def rate(images: Callable[..., Iterator[Tensor]], files: Sequence[bytes], scale: tuple[float, float]) -> float:
    """Images a second of processor time."""
    started = time.process_time()
    for _ in images(files, scale):
        pass
    return len(files) / (time.process_time() - started)


def differences(files: Sequence[bytes], scale: tuple[float, float]) -> list[float]:
    """Per image the largest difference of a pixel to Pillow's crop and resize of the same box."""
    found = []
    sides, draws = np.full(len(files), 512), uniforms(SEED, np.arange(len(files)), CROP, 22)
    boxes = crop_boxes(sides, sides, draws, scale, (3 / 4, 4 / 3))
    for data, (top, left, height, width) in zip(files, boxes.tolist(), strict=True):
        ours = resize_as_pillow(decode_image(data)[:, top : top + height, left : left + width], SIZE, SIZE)
        crop = Image.open(io.BytesIO(data)).convert("RGB").crop((left, top, left + width, top + height))
        theirs = torch.from_numpy(np.array(crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC))).permute(2, 0, 1)
        found.append(float((ours.int() - theirs.int()).abs().max()))
    return found


def main() -> int:
    """Compare medians of 15 passes over 256 photographs (``--quick``: 7 over 128)."""
    count, repetitions = (128, 7) if quick(__doc__ or "") else (256, 15)
    torch.set_num_threads(1)
    files = photographs(count)
    figures = {}
    for name, scale in SCALES.items():
        rate(clipkit_images, files[:BATCH], scale), rate(open_clip_images, files[:BATCH], scale)
        pairs = [(rate(open_clip_images, files, scale), rate(clipkit_images, files, scale)) for _ in range(repetitions)]
        peer, own = (figure([pair[i] for pair in pairs]) for i in (0, 1))
        figures[f"rate_ratio{name}"] = figure([b / a for a, b in pairs], value=own["value"] / peer["value"])
        figures |= {f"clipkit_per_second{name}": own, f"open_clip_per_second{name}": peer}
    unequal = [value for scale in SCALES.values() for value in differences(files, scale)]
    figures["max_diff"] = figure(unequal, value=max(unequal))
    peer_name = f"open_clip {open_clip.__version__}'s image_transform (Pillow {Image.__version__})"
    return finish("decode", peer=peer_name, figures=figures)


if __name__ == "__main__":
    sys.exit(main())
