"""What a check found, as figures: broken samples, duplicates, captions, images, and what of an evaluation set is trained on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.data.gathered import Gathered
from clipkit.data.hashes import FLAT, distinct, near

VERSION = 1
MOST_LISTED = 1000
MOST_APART = 8.0
"""Mean difference in levels of 32 x 32 pixels: copies at half the size or JPEG quality 50 are below, other drawings above."""
_SHOWN = 5
_LEVELS = {"min": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "max": 1.0}

Json = dict[str, Any]
Ints = NDArray[np.int64]


def report(held: Gathered, against: Gathered | None, context: tuple[str, int] | None) -> Json:
    """All figures, of JSON types; shares are fractions.

    Args:
        held: The shards to train on.
        against: The evaluation sets, where there are any.
        context: Name of the model and the tokens that it takes; None where none were counted.
    """
    broken = sum(held.broken.values())
    causes = {
        cause: {"count": count, "examples": [example._asdict() for example in held.examples[cause]]}
        for cause, count in held.broken.most_common()
    }
    found: Json = {
        "version": VERSION,
        "shards": len(held.items),
        "samples": held.samples,
        "unreadable_shards": held.unreadable,
        "broken": {"count": broken, "share": broken / max(held.samples, 1), "causes": causes},
        "images": _images(held),
        "captions": _captions(held, context),
        "duplicates": {
            "images": _equal(held, held.image_hash, held.picture),
            "captions": _equal(held, held.text_hash, held.owner),
            "near_images": _near(held),
        },
    }
    if against is not None:
        found["leakage"] = leakage(held, against)
    return found


def quantiles(counts: Counter[int]) -> Json:
    """Least, largest and some between of how many values there are of each; the lower of two where one lies between."""
    if not counts:
        return {}
    values = np.array(sorted(counts), np.int64)
    upto = np.cumsum([counts[value] for value in values.tolist()])
    at = {name: values[np.searchsorted(upto, max(1, np.ceil(level * upto[-1])))] for name, level in _LEVELS.items()}
    mean = sum(value * count for value, count in counts.items()) / int(upto[-1])
    return {name: int(value) for name, value in at.items()} | {"mean": round(mean, 2)}


def _spread(values: NDArray[Any]) -> Json:
    if not len(values):
        return {}
    found = np.quantile(values, list(_LEVELS.values()), method="inverted_cdf").tolist()
    return dict(zip(_LEVELS, found, strict=True)) | {"mean": round(float(values.mean()), 3)}


def _images(held: Gathered) -> Json:
    width, height = held.size.T
    return {
        "count": len(held.picture),
        "formats": dict(held.formats.most_common()),
        "traits": dict(held.traits.most_common()),
        "of_one_colour": int((held.look == FLAT).sum()),
        "width": _spread(width),
        "height": _spread(height),
        "short_side": _spread(np.minimum(width, height)),
        "aspect": _spread(np.round(width / np.maximum(height, 1), 3)),
    }


def _captions(held: Gathered, context: tuple[str, int] | None) -> Json:
    count = len(held.text_hash)
    found: Json = {"count": count} | {unit: quantiles(counts) for unit, counts in held.lengths.items()}
    if context is not None and "tokens" in held.lengths:
        model, most = context
        cut = sum(number for tokens, number in held.lengths["tokens"].items() if tokens > most)
        found["cut"] = {"model": model, "context": most, "count": cut, "share": cut / max(count, 1)}
    found["suspicious"] = dict(held.suspicious.most_common(20))
    hashes, first, times = np.unique(held.text_hash, return_index=True, return_counts=True)
    most_frequent = np.argsort(-times, kind="stable")[:_SHOWN]
    found["distinct"] = len(hashes)
    found["most_frequent"] = [
        {"text": held.text(int(first[at])), "count": int(times[at])} for at in most_frequent if times[at] > 1
    ]
    return found


def _equal(held: Gathered, hashes: Ints, samples: Ints) -> Json:
    """Groups of equal values, and how many values there are beyond one of each."""
    values, times = np.unique(hashes, return_counts=True)
    largest = np.argsort(-times, kind="stable")[:_SHOWN]
    examples = []
    for at in largest[times[largest] > 1]:
        rows = np.flatnonzero(hashes == values[at])[:3]
        examples.append({"count": int(times[at]), "samples": [held.place(int(samples[row])) for row in rows]})
    return {"groups": int((times > 1).sum()), "surplus": len(hashes) - len(values), "examples": examples}


def _near(held: Gathered) -> Json:
    """Files, equal ones counted once, that look like another file; pictures of one colour are left out."""
    files = held.files[held.look[held.files] != FLAT]
    first, group = distinct(held.look[files], held.colour[files])
    found = near(held.look[files][first], held.colour[files][first])
    same = np.bincount(group, minlength=len(first))[group] > 1
    has = same | (found.partner[group] >= 0)
    examples = []
    for row in np.flatnonzero(has)[: 4 * _SHOWN]:
        twins = np.flatnonzero(group == group[row])
        other = twins[twins != row][0] if same[row] else first[found.partner[group[row]]]
        pair = sorted((int(held.picture[files[row]]), int(held.picture[files[other]])))
        if pair not in examples:
            examples.append(pair)
    shown = [[held.place(sample) for sample in pair] for pair in examples[:_SHOWN]]
    return {"files": int(has.sum()), "not_compared": found.skipped, "examples": shown}


def leakage(held: Gathered, against: Gathered) -> Json:
    """What of the evaluation sets occurs in training: files, pictures that look nearly the same, captions."""
    row, exact = _where(held.image_hash, against.image_hash)
    candidates = np.flatnonzero(~exact & (against.look != FLAT))
    files = held.files[held.look[held.files] != FLAT]
    first, _ = distinct(held.look[files], held.colour[files])
    known = files[first]
    partner = near(against.look[candidates], against.colour[candidates], (held.look[known], held.colour[known])).partner
    suspected = zip(candidates[partner >= 0].tolist(), known[partner[partner >= 0]].tolist(), strict=True)
    similar = [(there, here) for there, here in suspected if same_picture(against, there, held, here)]
    text_row, text = _where(held.text_hash, against.text_hash)
    pairs = [("file", against.picture[at], held.picture[row[at]]) for at in np.flatnonzero(exact)]
    pairs += [("look", against.picture[at], held.picture[to]) for at, to in similar]
    texts = [("caption", against.owner[at], held.owner[text_row[at]]) for at in np.flatnonzero(text)]
    return {
        "samples": against.samples,
        "broken": dict(against.broken),
        "unreadable_shards": against.unreadable,
        "pictures": {"count": len(pairs), "share": len(pairs) / max(against.samples, 1)},
        "same_file": int(exact.sum()),
        "same_look": len(similar),
        "same_caption": len(texts),
        "listed": [
            {"by": by, "evaluation": against.place(int(there)), "training": held.place(int(here))}
            for by, there, here in [*pairs[:MOST_LISTED], *texts[:MOST_LISTED]]
        ],
    }


def same_picture(a: Gathered, row_a: int, b: Gathered, row_b: int) -> bool:
    """Whether two pictures of near hashes, read again, are also close in their pixels: signs drew the same shape by others."""
    one, other = a.thumbnail(row_a), b.thumbnail(row_b)
    return one is not None and other is not None and float(np.abs(one - other).mean()) <= MOST_APART


def _where(hashes: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """For each wanted hash a row that has it, and whether there is one."""
    order = np.argsort(hashes, kind="stable")
    if not len(order):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    at = order[np.minimum(np.searchsorted(hashes, wanted, sorter=order), len(order) - 1)]
    return at, np.equal(hashes[at], wanted)
