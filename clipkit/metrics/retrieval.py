"""Ranks of retrieval, exact and tiled, and the figures made of them. Ties always against the model.

A *rank* counts the wrong candidates that score at least as high as the right one, so 0 is best and a tie is a miss: a
collapsed encoder, for which everything is equal, scores 0 and not 1. ``k`` hits when the rank is below ``k``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from clipkit.metrics.checks import require_finite, require_index, require_some
from clipkit.metrics.scores import Counter, band, paired_cosines, tiles

_TILE = 1792  # rows and columns: 12 MiB of scores and as much of marks
_AT_ONCE = 256  # captions whose own scores are computed together


class Ranks(NamedTuple):
    """Ranks of the right answers in both directions of retrieval.

    Attributes:
        image: For each caption, the rank of its image among all images (M,), int64.
        text: For each image, the rank of its best caption among the other images' captions (N,), int64.
        caption: For each caption, its rank for its own image among the other images' captions (M,), int64.
    """

    image: Tensor
    text: Tensor
    caption: Tensor


def ranks(image: Tensor, text: Tensor, owner: Tensor, tile: int = _TILE) -> Ranks:
    """Exact ranks of retrieval in both directions, with any number of captions an image.

    Caption to image: how many other images score at least as high as the caption's own. Image to caption: how many
    captions of *other* images score at least as high as one of its own, so an image's captions do not compete with
    each other. Two equal images, or one caption shared by two images, are a tie, which counts against the model.
    Memory is O(tile^2) and a few numbers a row above the inputs, never O(N x M). Counts are those of ``cosines``.

    Args:
        image: Unit-norm image embeddings (N, D).
        text: Unit-norm caption embeddings (M, D).
        owner: For each caption, the row of its image (M,), int64.
        tile: Rows and columns of the scores computed at once.

    Returns:
        The ranks of both directions.

    Raises:
        ValueError: If an embedding is not finite, an owner is no image, or an image has no caption.

    >>> image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> text = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0]])
    >>> found = ranks(image, text, owner=torch.tensor([0, 0, 1]))  # the second caption is nearer to the other image
    >>> found.image, found.text, found.caption
    (tensor([0, 1, 0]), tensor([0, 0]), tensor([0, 0, 0]))
    """
    require_finite(image, "image embeddings")
    require_finite(text, "caption embeddings")
    require_index(owner, len(image), "owner", "images")
    captions = torch.bincount(owner, minlength=len(image))  # (N,)
    without = captions.eq(0).nonzero()
    if len(without):
        raise ValueError(f"image {int(without[0])} has no caption; every image needs at least one")

    # Filled in place: many small results kept between large temporaries would leave holes in the heap.
    own = torch.empty(len(text), device=text.device)  # score of each caption with its image (M,)
    for t in tiles(len(text), min(tile, _AT_ONCE)):
        own[t] = paired_cosines(image[owner[t]], text[t])
    # Images with most captions first, so that those with a j-th caption are the first rows of a tile.
    order = captions.argsort(descending=True, stable=True)
    by_image = order.argsort()[owner].argsort(stable=True).int()  # captions in the order of their images
    end = captions[order].cumsum(0)
    counter = Counter(min(tile, len(image)), min(tile, len(text)), band(image, text, tile), image.device)
    of_captions = torch.zeros(len(text), dtype=torch.int32, device=text.device)
    of_own = torch.zeros_like(of_captions)
    for i in tiles(len(image), tile):
        rows = order[i]
        mine = by_image[
            int(end[i.start] - captions[rows[0]]) : int(end[i.stop - 1])
        ].long()  # the captions of these images
        of_own[mine] = _one_tile(image[rows], text, own, mine, captions[rows], counter, of_captions, tile)
    of_images = of_own.new_full((len(image),), len(text)).scatter_reduce(0, owner, of_own, "amin")
    del counter  # its tiles, before counts become int64
    return Ranks(image=of_captions.long(), text=of_images.long(), caption=of_own.long())


def _one_tile(
    image: Tensor,
    text: Tensor,
    own: Tensor,
    mine: Tensor,
    captions: Tensor,
    counter: Counter,
    of_captions: Tensor,
    tile: int,
) -> Tensor:
    """Hold some images against all captions: add to each caption's count, return the counts of the images' own.

    Args:
        image: Some images (A, D), those with most captions first.
        text: All captions (M, D).
        own: Score of each caption with its image (M,).
        mine: Numbers of these images' captions, image by image (P,).
        captions: How many captions each of these images has (A,).
        counter: What counts in one tile.
        of_captions: Counts of all captions (M,), added to.
        tile: Captions at once.

    Returns:
        For each of ``mine``, how many captions of other images reach its score (P,), int32.
    """
    row = torch.arange(len(image), device=image.device).repeat_interleave(captions)  # (P,)
    slot = torch.arange(len(mine), device=image.device) - (captions.cumsum(0) - captions)[row]
    least = own.new_full((int(captions.max()), len(image)), torch.inf)  # (most captions, A)
    least[slot, row] = own[mine]
    having = [int((captions > j).sum()) for j in range(len(least))]
    counts = torch.zeros_like(least, dtype=torch.int32)
    for t in tiles(len(text), tile):
        scores = counter.load(image, text[t])
        here = ((mine >= t.start) & (mine < t.stop)).nonzero().squeeze(1)
        scores[row[here], mine[here] - t.start] = -torch.inf  # right pairs do not count against themselves
        of_captions[t] += counter.in_columns(own[t]).int()
        for j, rows in enumerate(having):
            counts[j, :rows] += counter.in_rows(least[j, :rows]).int()
    return counts[slot, row]


def recall_at(ranks: Tensor, k: int) -> float:
    """Share of ranks below ``k``: the hit rate that CLIP papers call recall@k.

    Args:
        ranks: Ranks from 0, the best (N,), int64.
        k: How many answers are looked at.

    Returns:
        A fraction.

    Raises:
        ValueError: If there are no ranks.

    >>> recall_at(torch.tensor([0, 4, 5, 9]), k=5)
    0.5
    """
    require_some(ranks)
    return int((ranks < k).sum()) / len(ranks)


def positions(caption: Tensor, owner: Tensor) -> Tensor:
    """Place of each caption in its image's list of all captions, the image's own ones counted too.

    Args:
        caption: Rank of each caption among the other images' captions, ``Ranks.caption`` (M,), int64.
        owner: For each caption, the row of its image (M,), int64.

    Returns:
        Places from 0, the best (M,), int64, different among the captions of one image.

    >>> positions(torch.tensor([3, 0, 0]), torch.tensor([0, 0, 1]))  # before the first: three others' and the second
    tensor([4, 0, 0])
    """
    by_rank = caption.argsort(stable=True)
    order = by_rank[owner[by_rank].argsort(stable=True)]  # image by image, each image's best first
    count = torch.bincount(owner)
    nth = torch.arange(len(owner), device=owner.device) - (count.cumsum(0) - count)[owner[order]]
    found = caption.clone()
    found[order] += nth
    return found


def true_recall(caption: Tensor, owner: Tensor, k: int) -> Tensor:
    """Share of each image's captions that are among the ``k`` best: recall@k in the sense of information retrieval.

    With five captions an image, recall@1 is at most 0.2; the mean over images is CLIP_benchmark's ``recall_at_k`` before
    it becomes a hit rate, and mteb's ``recall_at_k``.

    Args:
        caption: ``Ranks.caption`` (M,), int64.
        owner: For each caption, the row of its image (M,), int64.
        k: How many answers are looked at.

    Returns:
        A fraction for each image (N,), float64.

    >>> true_recall(torch.tensor([3, 0, 0]), torch.tensor([0, 0, 1]), k=2)
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    require_some(caption)
    hits = torch.bincount(owner, weights=(positions(caption, owner) < k).double())
    return hits / torch.bincount(owner)


def average_precision_at_r(caption: Tensor, owner: Tensor) -> Tensor:
    """AP@R of each image, R its number of captions: precision at each right answer among the first R, summed, over R.

    Musgrave, Belongie and Lim, A Metric Learning Reality Check (2020), equation 3. With one right answer it is recall@1.

    Args:
        caption: ``Ranks.caption`` (M,), int64.
        owner: For each caption, the row of its image (M,), int64.

    Returns:
        A fraction for each image (N,), float64.

    >>> average_precision_at_r(torch.tensor([1, 0, 0]), torch.tensor([0, 0, 1]))  # the first image: hit, miss
    tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    require_some(caption)
    place = positions(caption, owner)
    nth = place - caption  # how many of the image's own stand before it
    r = torch.bincount(owner)
    precision = torch.where(place < r[owner], (nth + 1).double() / (place + 1).double(), 0.0)
    return torch.bincount(owner, weights=precision) / r


def median(values: Tensor) -> float:
    """The middle value, the mean of both middles where there are two; ``torch.median`` takes the lower.

    Args:
        values: Numbers (N,).

    Raises:
        ValueError: If there are none.

    >>> median(torch.tensor([4, 0, 1, 9]))
    2.5
    """
    require_some(values)
    ordered = values.sort().values
    return (float(ordered[(len(values) - 1) // 2]) + float(ordered[len(values) // 2])) / 2
