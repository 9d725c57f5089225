"""Hashes of all that decides a figure: weights, preprocessing, prompts, data, and the question itself."""

from __future__ import annotations

import string

from clipkit.encoder import Encoder
from clipkit.evaluation.digests import digest
from clipkit.evaluation.evaluator import Evaluator

Hashes = dict[str, str | None]
# of every kind, so that tokenizers which differ differ on them
TEXTS = [
    string.printable,
    "A photo of 12 grey cats, under an umbrella.",
    "Ein größeres Bild: 東京, Ελλάδα и Москва, naïve café 🐈",
    "",
]


def encoder_hashes(encoder: Encoder) -> Hashes:
    """Of ``weights`` (names, shapes, types, bytes) and ``preprocessing``: open_clip's keys, and what texts of every kind are as tokens."""
    preprocessing = [encoder.info.preprocess, encoder.tokenize(TEXTS)]
    return {"weights": digest(encoder.state_dict_open_clip()), "preprocessing": digest(preprocessing)}


def evaluator_hashes(evaluator: Evaluator) -> Hashes:
    """Of the data set, the prompts and the question.

    Returns:
        ``data``: its manifest (each image's name and length, labels, captions); ``prompts``: class names and templates, None
        without; ``question``: everything that the evaluator holds.
    """
    held = vars(evaluator)
    data = held.get("data")
    prompts = [getattr(data, "classnames", None), held.get("templates")]
    return {
        "data": digest(data) if data is not None else None,
        "prompts": digest(prompts) if all(prompts) else None,
        "question": digest([type(evaluator).__name__, held]),
    }
