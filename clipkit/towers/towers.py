"""All towers of a model: each field once, whole or in micro-batches.

Texts whose needed lengths are known go through in a few parts of like length, each cut to its own longest: the features stay the same,
and most of the padding is never computed. With micro-batches the whole tower runs under a non-reentrant checkpoint for each slice:
activations of one slice live at a time, and the gradient is that of the whole batch, because there is still one loss and one backward.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipkit import distributed
from clipkit.towers.base import Features, Tower

_MOST_PARTS, _FEWEST_ROWS = 4, 8
NORMS = (nn.modules.batchnorm._BatchNorm,)
_VIEW = re.compile(r"_view[0-9]+$")


class Towers(nn.Module):
    """The towers by field.

    Args:
        towers: Field name to tower.
        micro_batch: Samples of a tower's forward, or None for the whole batch at once.
    """

    def __init__(self, towers: Mapping[str, Tower], micro_batch: int | None = None) -> None:
        super().__init__()
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"micro_batch must be at least 1, got {micro_batch}")
        self.by_field = nn.ModuleDict(dict(towers))
        self.micro_batch = micro_batch
        self.sharded = False
        """Whether the towers' weights are spread over ranks: each forward is then one of all ranks together."""
        self._group: Any = None

    def shard(self, mesh: Any) -> None:
        """Spread each tower over the ranks of a device mesh."""
        for field in self.fields():
            distributed.shard(self[field], mesh)
        self.sharded, self._group = True, distributed.cpu_group()

    def __getitem__(self, field: str) -> Tower:
        """The tower of a field."""
        tower = self.by_field[field]
        assert isinstance(tower, Tower)
        return tower

    def tower_of(self, name: str) -> Tower:
        """The tower of a field or of a view of one."""
        return self[_VIEW.sub("", name)]

    def fields(self) -> list[str]:
        """The fields that have a tower."""
        return list(self.by_field)

    def present(self, batch: Mapping[str, Any]) -> list[str]:
        """The fields with a tower, and those of the batch that are further views of one (``image_view1``) and share it."""
        return [
            *self.by_field,
            *(name for name in batch if _VIEW.sub("", name) in self.by_field and _VIEW.search(name)),
        ]

    def lengths(self, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        """Needed tokens of each sample for the fields that can be trimmed exactly; read it while the batch is on the CPU."""
        found = {name: self.tower_of(name).lengths(batch[name]) for name in self.present(batch) if name in batch}
        return {field: lengths for field, lengths in found.items() if lengths is not None}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Features]:
        """Encode each field of the batch that has a tower, and each view of it.

        Args:
            batch: Field name to tensor (B, ...), and optionally ``lengths`` as the method of that name returns it.

        Returns:
            Field name to features, rows in the batch's order.
        """
        lengths = batch.get("lengths", {})
        fields = self.present(batch)
        most = self._most_rows([len(batch[field]) for field in fields])
        return {
            field: self._encode(field, batch[field], lengths.get(field), rows)
            for field, rows in zip(fields, most, strict=True)
        }

    def _most_rows(self, rows: list[int]) -> list[int]:
        """Rows of each field on the rank that has most, where forwards are of all ranks together; else this rank's."""
        if not self.sharded:
            return rows
        most = torch.tensor(rows, dtype=torch.int64)
        if (work := distributed.all_reduce_max_async(most, self._group)) is not None:
            work.wait()
        return [int(count) for count in most.tolist()]

    def trimmed(self, batch: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
        """Per field whose lengths are known: tokens that a sample needs, in the mean, and the share of all tokens that is computed."""
        found = {}
        for field, lengths in batch.get("lengths", {}).items():
            rows, context = batch[field].shape
            computed = sum(len(part) * _width(context, lengths, part) for part in self._parts(rows, lengths))
            found[field] = sum(lengths) / max(rows, 1), computed / max(rows * context, 1)
        return found

    def _parts(self, rows: int, lengths: Sequence[int] | None, most: int | None = None) -> list[list[int]]:
        """Row numbers of what goes through a tower at one time; ``most`` are the rows of the rank that has most."""
        size = self.micro_batch if not self._whole(most or rows) else _part_size(rows, lengths)
        return list(_slices(rows, size, lengths))

    def _encode(self, field: str, x: Tensor, lengths: Sequence[int] | None, most: int) -> Features:
        tower = self.tower_of(field)
        slices = self._parts(len(x), lengths, most)
        missing = len(self._parts(most, None if lengths is None else [0] * most, most)) - len(slices)
        if len(slices) == 1 and not missing and self._whole(most):
            features: Features = tower(_trim(x, lengths, slices[0]))
            return features
        parts: list[Features] = []
        for rows in slices:
            contiguous = x[rows[0] : rows[-1] + 1] if lengths is None else x[torch.tensor(rows, device=x.device)]
            chunk = _trim(contiguous, lengths, rows)
            parts.append(tower(chunk) if self._whole(most) else self._checkpointed(tower, chunk))
        for _ in range(
            missing
        ):  # a rank with more rows waits for this one; cut off again, so that its gradient is zero
            idle = x.new_zeros((1, *x.shape[1:]))
            parts.append(tower(idle) if self._whole(most) else self._checkpointed(tower, idle))
        pooled = torch.cat([part.pooled for part in parts])[: len(x)]
        if lengths is not None:  # back to the batch's order
            order = torch.tensor([row for rows in slices for row in rows], device=x.device)
            pooled = torch.empty_like(pooled).index_copy(0, order, pooled)
        return Features(pooled)

    def _whole(self, rows: int) -> bool:
        """Whether a batch of so many rows stays in memory at once."""
        return self.micro_batch is None or self.micro_batch >= rows

    @staticmethod
    def _checkpointed(tower: Tower, chunk: Tensor) -> Features:
        if not torch.is_grad_enabled() or not any(p.requires_grad for p in tower.parameters()):
            return tower(chunk)  # type: ignore[no-any-return]
        return checkpoint(  # type: ignore[no-any-return]
            tower,
            chunk,
            use_reentrant=False,
            preserve_rng_state=True,
            context_fn=lambda: (contextlib.nullcontext(), still(tower)),
        )


@contextlib.contextmanager
def still(tower: nn.Module) -> Iterator[None]:
    """Inside, batch norms learn nothing: the forward that backward repeats would move their running statistics twice, a trial for nothing."""
    norms = [module for module in tower.modules() if isinstance(module, NORMS) and module.track_running_stats]
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    try:
        yield
    finally:
        with torch.no_grad():
            for norm, buffers in zip(norms, before, strict=True):
                for name, value in buffers.items():
                    norm.get_buffer(name).copy_(value)


def batchnorm_names(module: nn.Module) -> list[str]:
    """Names of trainable batch norms, whose statistics no micro-batching or data parallelism keeps exact."""
    return [name for name, child in module.named_modules() if isinstance(child, NORMS) and child.training]


def _part_size(rows: int, lengths: Sequence[int] | None) -> int | None:
    """Rows of each of a few parts of like length; as many parts on every rank, whatever its lengths are."""
    parts = 1 if lengths is None else min(_MOST_PARTS, rows // _FEWEST_ROWS)
    return -(-rows // parts) if parts > 1 else None


def _slices(rows: int, size: int | None, lengths: Sequence[int] | None) -> Iterator[list[int]]:
    """Row numbers of each micro-batch, in order of length where lengths are known."""
    order = list(range(rows)) if lengths is None else sorted(range(rows), key=lambda row: lengths[row])
    if size is None or size >= rows:
        yield list(range(rows))
        return
    for start in range(0, rows, size):
        yield order[start : start + size]


def _width(context: int, lengths: Sequence[int], rows: Sequence[int]) -> int:
    """Tokens of the longest of ``rows``, rounded up to a multiple of 8."""
    return min(context, -(-max((lengths[row] for row in rows), default=context) // 8) * 8)


def _trim(x: Tensor, lengths: Sequence[int] | None, rows: Sequence[int]) -> Tensor:
    """Cut tokens (B, L) after the longest of ``rows``."""
    return x if lengths is None else x[:, : _width(x.shape[1], lengths, rows)]
