"""Pictures as a model takes them, with a thumbnail of each, decoded in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import encode_jpeg

from clipkit.data.images import BadSample, decode_image
from clipkit.data.pixels import crop_resized
from clipkit.data.worker import start_worker
from clipkit.embedding.parts import Item


class Pictures(NamedTuple):
    """Those of a batch that were decoded, and what was wrong with the others.

    Attributes:
        rows: Their places among the items (B).
        pixels: What the image tower takes, uint8 (B, 3, H, W): one tensor, for each leaves its worker by a descriptor of its own.
        thumbnails: Small JPEGs of the whole pictures (B), or None each.
        unreadable: The causes.
    """

    rows: list[int]
    pixels: Tensor
    thumbnails: list[bytes | None]
    unreadable: list[str]


def batches(
    items: Sequence[Item], preprocess: Callable[[Tensor], Tensor], *, batch_size: int, workers: int, thumbnail: int
) -> Iterator[Pictures]:
    """The pictures of items, in order.

    Args:
        items: What to read (N).
        preprocess: The model's resizing.
        batch_size: Pictures of one batch.
        workers: Processes that read; 0 reads in this one.
        thumbnail: Longer side of the thumbnails in pixels, 0 without.
    """
    data = _Pictures(items, preprocess, thumbnail)
    yield from DataLoader(data, batch_size, num_workers=workers, collate_fn=_stack, worker_init_fn=start_worker)


def thumbnail_of(pixels: Tensor, side: int) -> bytes:
    """A JPEG (quality 80) of pixels uint8 (3, H, W) whose longer side has at most ``side`` pixels."""
    _, height, width = pixels.shape
    ratio = min(side / max(height, width), 1)
    goal = max(round(height * ratio), 1), max(round(width * ratio), 1)
    small = crop_resized(pixels, (0, 0, height, width), goal, "bilinear") if ratio < 1 else pixels
    return bytes(encode_jpeg(small.contiguous(), quality=80).numpy())


class _Picture(NamedTuple):
    row: int
    pixels: Tensor
    thumbnail: bytes | None


def _stack(batch: Sequence[_Picture | str]) -> Pictures:
    good = [found for found in batch if not isinstance(found, str)]
    return Pictures(
        rows=[found.row for found in good],
        pixels=torch.stack([found.pixels for found in good]) if good else torch.empty(0, 3, 0, 0, dtype=torch.uint8),
        thumbnails=[found.thumbnail for found in good],
        unreadable=[found for found in batch if isinstance(found, str)],
    )


class _Pictures(Dataset[_Picture | str]):
    def __init__(self, items: Sequence[Item], preprocess: Callable[[Tensor], Tensor], thumbnail: int) -> None:
        self.items = items
        self.preprocess = preprocess
        self.thumbnail = thumbnail

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> _Picture | str:
        item = self.items[row]
        if item.lacking:
            return f"{item.key}: {item.lacking}"
        try:
            pixels = decode_image(item.image.read())
        except (BadSample, OSError) as error:
            return f"{item.key}: {error}"
        small = thumbnail_of(pixels, self.thumbnail) if self.thumbnail else None
        return _Picture(row, self.preprocess(pixels), small)
