"""An HNSW index by usearch over embeddings, for more rows than one wants to score; what it finds is scored exactly.

The index lies in the cache and never in the folder of embeddings: an index file from a stranger is not opened.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipkit.config.names import DISTRIBUTION
from clipkit.embedding.search import blocks, top_k
from clipkit.embedding.store import locate
from clipkit.embedding.write import Rows

_log = logging.getLogger(__name__)
_MORE = 4  # candidates for each result


class Index:
    """Approximate nearest rows.

    Args:
        parts: Unit-norm embeddings (N_p, D).
        place: Where the index is kept; made on first use.

    Raises:
        ValueError: If usearch is not installed.
    """

    def __init__(self, parts: Sequence[Rows], place: Path) -> None:
        self.parts = parts
        total = sum(len(part) for part in parts)
        self._index = _empty(parts[0].shape[1] if parts else 1)
        if place.is_file():
            try:
                self._index.load(str(place))
            except RuntimeError as error:
                _log.warning("%s cannot be read (%s); it is made anew", place, error)
            else:
                if len(self._index) == total:
                    return
                _log.warning("%s holds %d rows of %d; it is made anew", place, len(self._index), total)
            self._index = _empty(parts[0].shape[1])
        _log.warning("indexing %d rows into %s", total, place)
        for start, block in blocks(parts):
            self._index.add(np.arange(start, start + len(block)), block.astype(np.float32))
        place.parent.mkdir(parents=True, exist_ok=True)
        fresh = place.with_name(f".{place.name}.{os.getpid()}")
        self._index.save(str(fresh))
        os.replace(fresh, place)

    def top_k(self, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """As ``search.top_k``, over what the index finds: a near row may be missed, a score is never wrong."""
        if not len(self._index):
            return torch.empty(len(query), 0), torch.empty(len(query), 0, dtype=torch.int64)
        scores, rows = [], []
        k = min(k, len(self._index))
        for one in query.float():
            near = self._index.search(one.numpy(), min(k * _MORE, len(self._index))).keys
            if len(near) < k:  # among many equal rows the graph does not reach them all
                exact_scores, exact_rows = top_k(self.parts, one[None], k)
                scores.append(exact_scores[0])
                rows.append(exact_rows[0])
                continue
            found = [self.parts[part][within] for part, within in (locate(self.parts, int(row)) for row in near)]
            exact = torch.from_numpy(np.stack(found).astype(np.float32)) @ one
            best = exact.topk(k)
            scores.append(best.values)
            rows.append(torch.tensor([int(near[place]) for place in best.indices]))
        return torch.stack(scores), torch.stack(rows)


def _empty(width: int) -> Any:
    try:
        from usearch.index import Index as Graph
    except ImportError as error:
        raise ValueError(f"--index needs usearch: pip install '{DISTRIBUTION}[search]'") from error
    return Graph(ndim=width, metric="ip", dtype="f16")
