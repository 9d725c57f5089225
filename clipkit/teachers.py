"""The live teachers that a configuration's losses name."""

from __future__ import annotations

from clipkit.callbacks.say import say
from clipkit.config import DistillationSpec, RunConfig
from clipkit.config.model import split_model
from clipkit.loading import load_pair
from clipkit.towers.open_clip import OpenClipPair
from clipkit.towers.teacher import Teacher


def build_teachers(config: RunConfig, student: OpenClipPair) -> list[Teacher]:
    """Each live teacher once, frozen; what was done to load it is said.

    Raises:
        ValueError: If one cannot be loaded, has random weights, or does not tokenize as the student does.
    """
    named: dict[tuple[str, str], tuple[str, str]] = {}
    for name, spec in config.losses.items():
        if isinstance(spec, DistillationSpec) and spec.teacher_model is not None:
            where = f"losses.{name}.teacher_model"
            other = named.setdefault(spec.teacher, (spec.teacher_model, where))
            if other[0] != spec.teacher_model:
                raise ValueError(
                    f"{where}={spec.teacher_model}: {other[1]} is another model and both call their embeddings "
                    f"{', '.join(spec.teacher)}; give one of them other names (`teacher: [...]`)"
                )
            if spec.pair != ("image", "text"):
                raise ValueError(f"{where}: a live teacher makes embeddings of image and text, not of {spec.pair}")
    return [_built(model, where, names, student) for names, (model, where) in named.items()]


def _built(model: str, where: str, names: tuple[str, str], student: OpenClipPair) -> Teacher:
    parts = split_model(model)
    try:
        pair, source, notes = load_pair(str(parts["name"]), parts["pretrained"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if source is None:
        raise ValueError(f"{where}={model} has random weights, which teach nothing; name a tag (NAME:TAG) or a file")
    teacher = Teacher(pair, student, names=names, place=f"{where}={model}")
    count = sum(p.numel() for p in teacher.parameters()) / 1e6
    height, width = teacher.size
    say(f"{where}: {model} ({source}), frozen, {count:,.1f} M parameters, sees images of {height} x {width}")
    for note in notes:
        say(f"{where}: {note}")
    return teacher
