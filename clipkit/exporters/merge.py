"""Several models of one architecture as one: the weighted mean of their weights.

Of two, a line between them: WiSE-FT (Wortsman et al., 2022, "Robust fine-tuning of zero-shot models", https://arxiv.org/abs/2109.01903);
of more, a model soup (Wortsman et al., 2022, https://arxiv.org/abs/2203.05482).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from clipkit.encoder import Encoder
from clipkit.evaluation.fingerprints import TEXTS
from clipkit.towers.graph_files import graph_of

_NO_MATTER = (
    "init_logit_scale",
    "init_logit_bias",
    "timm_model_pretrained",
    "hf_model_pretrained",
    "hf_tokenizer_name",
)


def shares(count: int, weights: Sequence[float]) -> list[float]:
    """The share of each model, the first one's being what the others leave.

    Args:
        count: How many models are merged into the first.
        weights: A share of each of those, or none for equal shares of all.

    Raises:
        ValueError: If there are not as many, or they leave the first less than nothing.

    Example:
        >>> shares(1, [0.25]), shares(3, [])
        ([0.75, 0.25], [0.25, 0.25, 0.25, 0.25])
    """
    if not weights:
        return [1 / (count + 1)] * (count + 1)
    if len(weights) != count:
        raise ValueError(f"{len(weights)} --weight for {count} --merge; give one for each, or none for equal shares")
    wrong = next((weight for weight in weights if not 0 <= weight <= 1), None)
    if wrong is not None or sum(weights) > 1 + 1e-9:
        said = f"--weight {wrong:g}" if wrong is not None else f"the weights add up to {sum(weights):g}"
        raise ValueError(
            f"{said}; each is the share of its --merge, 0 to 1, and they leave the rest to the first model"
        )
    return [max(0.0, 1 - sum(weights)), *weights]


def mean_state(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of states, each value in float64 and rounded once to its own type; integers are the first state's.

    Args:
        states: Tensors by name, the same names and shapes in each.
        weights: A share of each, adding up to one.

    Raises:
        ValueError: If a name or shape differs.

    Example:
        >>> mean_state([{"w": torch.zeros(2)}, {"w": torch.ones(2)}], [0.75, 0.25])
        {'w': tensor([0.2500, 0.2500])}
    """
    first = states[0]
    for number, state in enumerate(states[1:], start=2):
        for name in sorted({*first, *state}):
            a, b = (tuple(held[name].shape) if name in held else "absent" for held in (first, state))
            if a != b:
                raise ValueError(f"model {number} has {name} {b}, the first {a}; only one architecture can be merged")
    found = {}
    for name, value in first.items():
        if not value.is_floating_point():  # a counter of BatchNorm, positions
            found[name] = value.clone()
            continue
        total = torch.zeros(value.shape, dtype=torch.float64)
        for state, weight in zip(states, weights, strict=True):
            total += weight * state[name].detach().cpu().double()
        found[name] = total.to(value.dtype)
    return found


def merge(encoders: Sequence[Encoder], weights: Sequence[float]) -> tuple[Encoder, list[str]]:
    """One encoder out of several.

    The logit scale is averaged as its logarithm, the parameter that is trained: a geometric mean of inverse temperatures.

    Args:
        encoders: Of one architecture, preprocessing and tokenizer.
        weights: A share of each, adding up to one.

    Returns:
        The encoder, and what its user must know.

    Raises:
        ValueError: If they differ in anything but their weights; the message names it.
    """
    first = encoders[0]
    for other in encoders[1:]:
        _require_alike(first, other)
    merged = []
    for field in ("image", "text"):
        tower = copy.deepcopy(getattr(first, field)).cpu()
        tower.load_state_dict(mean_state([getattr(encoder, field).state_dict() for encoder in encoders], weights))
        merged.append(tower.to(first.device).eval())
    biases = [encoder.logit_bias for encoder in encoders]
    name = " + ".join(f"{weight:.6g} * {encoder.info.model}" for encoder, weight in zip(encoders, weights, strict=True))
    trained = any(encoder.info.pretrained is not None for encoder in encoders)
    result = Encoder(
        image=merged[0],
        text=merged[1],
        tokenize=first.tokenize,
        log_scale=_mean([encoder.log_scale for encoder in encoders], weights),
        bias=None if biases[0] is None else _mean([float(bias or 0) for bias in biases], weights),
        info=replace(first.info, model=name, pretrained="merge" if trained else None, averaged=False),
    )
    notes = [
        "the logit scale of the merge is the mean of the logarithms, that is the geometric mean of inverse temperatures"
    ]
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in first.image.modules()):
        text = "means and variances of BatchNorm are averaged as they are; they were not measured anew on data"
        notes.append(text)
    return result, notes


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return float(sum(value * weight for value, weight in zip(values, weights, strict=True)))


def _require_alike(first: Encoder, other: Encoder) -> None:
    pair = f"{first.info.model} and {other.info.model}"
    for encoder in (first, other):
        if (graph := graph_of(encoder.image)) is not None:
            raise ValueError(
                f"{encoder.info.model} holds {graph.kind}s and {graph.lacks} to merge; name the run itself"
            )
    for what, a, b in (
        ("architecture", _architecture(first.info.config), _architecture(other.info.config)),
        ("preprocessing", _plain(first.info.preprocess), _plain(other.info.preprocess)),
    ):
        different = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
        if different:
            key = different[0]
            said = f"{key} is {a.get(key, 'absent')} in the one and {b.get(key, 'absent')} in the other"
            raise ValueError(f"{pair} cannot be merged, their {what} differs: {said}; merge models of one origin")
    same = torch.equal(first.tokenize(TEXTS), other.tokenize(TEXTS))
    if not same or type(first.tokenize) is not type(other.tokenize):
        raise ValueError(f"{pair} cannot be merged, their tokenizers differ; merge models of one origin")
    if (first.logit_bias is None) != (other.logit_bias is None):
        raise ValueError(f"{pair} cannot be merged, only one of them has a logit bias")


def _architecture(config: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Every key that decides shapes or arithmetic, by its dotted path."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= _architecture(value, f"{place}{key}.")
        elif key not in _NO_MATTER and value is not None:
            found[f"{place}{key}"] = json.loads(json.dumps(value))
    return found


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(options))
    return found
