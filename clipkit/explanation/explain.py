"""An image, a text and an encoder: the map of the whole text, and one map a word."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from clipkit.encoder import Encoder
from clipkit.towers.places import Relevance, relevance

MOST_WORDS = 12


@dataclass(frozen=True)
class Explanation:
    """What the encoder sees where.

    Args:
        image: The image as the model sees it: resized and cropped.
        text: The whole text.
        cosine: Cosine of the whole image and the whole text.
        whole: Its map (H, W).
        words: The words, without punctuation.
        maps: A map of each word (M, H, W).
        cosines: Cosine of the whole image and each word (M).
        method: How the maps were made: ``clipkit.towers.places``.
        left_out: Words beyond the first ``MOST_WORDS``.
    """

    image: Image.Image
    text: str
    cosine: float
    whole: Tensor
    words: tuple[str, ...]
    maps: Tensor
    cosines: tuple[float, ...]
    method: str
    left_out: int


def explain(encoder: Encoder, image: Image.Image | Tensor, text: str) -> Explanation:
    """Map the text and each of its words onto the image.

    A word is embedded by itself: its map is that of the word as a text of its own, not of its place in the sentence. What all texts share
    says nothing about places, so it is taken away: the whole text's map is of its embedding less the empty text's, and a word's is of its
    embedding less the mean of all words and the empty text (in the spirit of CLIP Surgery, https://arxiv.org/abs/2304.05653).

    Args:
        encoder: The encoder.
        image: A PIL image, or uint8 (3, H, W).
        text: What to look for.

    Raises:
        ValueError: If the text holds no word.
    """
    every = split_words(text)
    if not every:
        raise ValueError(f"the text {text!r} holds no word; write what to look for, such as 'a red bicycle'")
    words = every[:MOST_WORDS]
    pixels = encoder.prepare([image])[0]
    embedded = encoder.encode_text([text, *words])
    empty = encoder.encode_text([""])
    shared = torch.cat([embedded[1:], empty]).mean(0)
    directions = torch.cat([embedded[:1] - empty, embedded[1:] - shared])
    found: Relevance = relevance(encoder.image, pixels, directions)
    cosines = encoder.similarity(encoder.encode_image([image]), embedded)[0].tolist()
    shown = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    return Explanation(
        image=shown,
        text=text,
        cosine=cosines[0],
        whole=found.maps[0],
        words=words,
        maps=found.maps[1:],
        cosines=tuple(cosines[1:]),
        method=found.method,
        left_out=len(every) - len(words),
    )


def split_words(text: str) -> tuple[str, ...]:
    """The words of a text, each once, without punctuation around them.

    >>> split_words("A dog, and a cat's tail -- a dog!")
    ('A', 'dog', 'and', 'a', "cat's", 'tail')
    """
    stripped = (word.strip(".,;:!?\"'()[]{}«»“”„‘’…-–—/") for word in text.split())
    return tuple(dict.fromkeys(word for word in stripped if word))
