"""Encode one data set on all ranks: item i goes to rank i mod W, and comes back in its place.

No sampler and no padding: a rank may have one item more than another, or none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipkit import distributed
from clipkit.data.images import BadSample
from clipkit.data.worker import start_worker
from clipkit.encoder import Encoder
from clipkit.evaluation.samples import ImageFile
from clipkit.evaluation.threads import beside_workers


def my_share(total: int) -> list[int]:
    """The numbers of this rank's items among ``total``."""
    return list(range(distributed.rank(), total, distributed.world_size()))


def gather_by_index(rows: Tensor, index: Sequence[int], total: int, device: torch.device) -> Tensor:
    """All ranks' rows, each in the place of its item.

    Args:
        rows: This rank's rows (B_r, D).
        index: The item of each row (B_r).
        total: Items of all ranks together.
        device: Where the process group communicates.

    Returns:
        (total, D) on the CPU, the same on every rank.
    """
    where = torch.tensor(index, dtype=torch.int64, device=device)
    found = torch.cat(distributed.all_gather_variable(where)).cpu()
    gathered = torch.cat(distributed.all_gather_variable(rows.to(device))).cpu()
    assert torch.equal(found.sort().values, torch.arange(total)), f"{len(found)} rows came back for {total} items"
    out = torch.empty_like(gathered)
    out[found] = gathered
    return out


def encode_images(
    encoder: Encoder,
    images: Sequence[ImageFile],
    *,
    batch_size: int,
    workers: int,
    on_images: Callable[[int], None] = lambda count: None,
    encode: Callable[..., Tensor] | None = None,
    poll: Callable[[], None] = lambda: None,
) -> Tensor:
    """Embed all images (N, D), shared among the ranks.

    Args:
        encoder: The encoder, the same on every rank.
        images: Where the images lie (N).
        batch_size: Images of one forward on one rank.
        workers: Processes a rank that read, decode and resize; 0 does it in this one.
        on_images: Told after each batch how many of this rank's images it held.
        encode: What turns images into rows, with ``batch_size``; ``encoder.encode_image`` unless given.
        poll: Called between batches, on every rank equally often; it may raise on all of them to give up.

    Returns:
        (N, D) float32, unit norm unless ``encode`` says otherwise, on the CPU, the same on every rank.

    Raises:
        ValueError: If an image cannot be read, on every rank, with its name.
    """
    encode = encode or encoder.encode_image
    mine = my_share(len(images))
    files = _Files([images[item] for item in mine], encoder.preprocess)
    loader = DataLoader(files, batch_size, num_workers=workers, collate_fn=_stack, worker_init_fn=start_worker)
    parts: list[Tensor] = []
    error: str | None = None
    common = -(-(len(images) // distributed.world_size()) // batch_size)  # a rank may have one batch more
    polled = 0
    with beside_workers(encoder, workers):
        for batch in loader:
            if polled < common:
                polled += 1
                poll()
            if isinstance(batch, str):
                error = batch
                break
            parts.append(encode(batch, batch_size=batch_size))
            on_images(len(batch))
    for _ in range(polled, common):  # after an error, as often as the others
        poll()
    agree_on_error(error)
    rows = torch.cat(parts) if parts else encode([])
    return gather_by_index(rows, mine, len(images), encoder.device)


def agree_on_error(error: str | None) -> None:
    """Raise on every rank what went wrong on any: one rank alone would leave the others waiting for it.

    Raises:
        ValueError: With the first rank's error.
    """
    errors = [message for message in distributed.gather_json(error) if message is not None]
    if errors:
        raise ValueError(errors[0])


def _stack(batch: Sequence[Tensor | str]) -> Tensor | str:
    """One tensor uint8 (B, 3, H, W), which leaves its worker by one descriptor, or the first message."""
    return next((item for item in batch if isinstance(item, str)), None) or torch.stack(list(batch))  # type: ignore[arg-type]


class _Files(Dataset[Tensor | str]):
    """Decoded and resized images, or for one that cannot be read the message that says so."""

    def __init__(self, images: Sequence[ImageFile], preprocess: Callable[[Tensor], Tensor]) -> None:
        self.images = images
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int) -> Tensor | str:
        image = self.images[item]
        try:
            return self.preprocess(image.decode())
        except (BadSample, OSError) as error:
            return f"{image}: unreadable image ({error}); a figure without it would not compare: repair or remove it"
