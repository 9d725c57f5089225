"""Compositionality: does the right caption score strictly higher than one with the same words otherwise put."""

from __future__ import annotations

from pathlib import Path

import torch

from clipkit import metrics
from clipkit.evaluation.encodings import Encodings
from clipkit.evaluation.evaluator import Figures, Findings
from clipkit.evaluation.pairs import open_pairs


class Compositional:
    """Text, image and group score (Winoground, Thrush et al., 2022, section 4). A tie is wrong.

    Args:
        data: A ``pairs.jsonl``, Winoground's ``.jsonl``, or SugarCrepe's or ARO's ``.json`` files (``pairs.open_pairs``).
        images: The folder of the images, where it is not beside the file.

    Raises:
        ValueError: If the set cannot be used as it is, with place and cure.
    """

    task = "image_caption_selection"  # CLIP_benchmark's name

    def __init__(self, data: str | Path, *, images: str | Path | None = None) -> None:
        self.questions = open_pairs(data, images)

    def run(self, encodings: Encodings) -> Findings:
        """Answer every question.

        Args:
            encodings: The encoder's embeddings, the same on every rank.

        Returns:
            ``text_acc``: each image's caption scores above the others, a mean over questions; over questions of two
            images ``image_acc``: each caption's image scores above the other, and ``acc``: both, the group score; None
            without such questions. Beside each ``..._chance``, of scores drawn at random. ``text_acc_macro``: the mean
            over groups. ``samples``. Details: ``groups``.

        Raises:
            ValueError: If an image cannot be read, with its name.
        """
        image = encodings.images([file for question in self.questions for file in question.images])
        text = encodings.texts([caption for question in self.questions for caption in question.captions])
        right: dict[str, list[bool]] = {"text_acc": [], "image_acc": [], "acc": []}
        i = t = 0
        for question in self.questions:
            images, captions = len(question.images), len(question.captions)
            scores = metrics.cosines(image[i : i + images], text[t : t + captions])  # (I, C)
            i, t = i + images, t + captions
            own = torch.eye(images, captions, dtype=torch.bool)
            mine = scores[own]  # (I,)
            others = scores.masked_fill(own, -torch.inf)
            by_text = bool((others.amax(1) < mine).all())
            right["text_acc"].append(by_text)
            if images == 2:
                by_image = bool((others.amax(0) < mine).all())
                right["image_acc"].append(by_image)
                right["acc"].append(by_text and by_image)
        outcomes = {name: torch.tensor(values) for name, values in right.items() if values}
        figures: Figures = {name: float(outcomes[name].double().mean()) if name in outcomes else None for name in right}
        groups = metrics.by_group(outcomes["text_acc"], [question.group for question in self.questions])
        figures |= self._chances()
        figures["text_acc_macro"] = sum(groups.figures.values()) / len(groups.figures)
        figures["samples"] = len(self.questions)
        return Findings(figures, outcomes, details={"groups": groups._asdict()})

    def _chances(self) -> Figures:
        # Two images, two captions: of the orders of four independent scores 1 in 4 gives text, 1 in 6 both.
        text = [(1 / len(question.captions)) ** len(question.images) for question in self.questions]
        pairs = any(len(question.images) == 2 for question in self.questions)
        return {
            "text_acc_chance": sum(text) / len(text),
            "image_acc_chance": 1 / 4 if pairs else None,
            "acc_chance": 1 / 6 if pairs else None,
        }
