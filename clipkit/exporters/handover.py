"""From MODEL to what is exported: found at rest, loaded, merged if asked, with all that is known of where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.encoder import Encoder
from clipkit.exporters.candidate import Format
from clipkit.exporters.card import write_card
from clipkit.exporters.merge import merge, shares
from clipkit.exporters.parity import ParityReport
from clipkit.exporters.prove import export_encoder
from clipkit.exporters.provenance import Provenance, merged
from clipkit.in_training import trainer_of
from clipkit.loading import load_encoder

Say = Callable[[str], None]


@dataclass(frozen=True)
class Ready:
    """An encoder to export.

    Args:
        encoder: The encoder.
        known: Where it comes from.
    """

    encoder: Encoder
    known: Provenance

    def export(
        self,
        format: Format,
        out: Path,
        *,
        images: Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        force: bool = False,
    ) -> ParityReport:
        """Write, prove and describe it: ``export_encoder`` with a card."""

        def finish(folder: Path, report: ParityReport) -> None:
            write_card(folder, format, report, self.known)

        return export_encoder(self.encoder, format, out, images=images, texts=texts, force=force, finish=finish)


def make_ready(
    model: str | Path | Encoder,
    *,
    merge_with: Sequence[str | Path | Encoder] = (),
    weights: Sequence[float] = (),
    average: bool = True,
    licence: str | None = None,
    say: Say = lambda line: None,
) -> Ready:
    """Load what is to be exported.

    Args:
        model: A MODEL, or an encoder.
        merge_with: More of the same architecture, to be merged into it.
        weights: The share of each of those; none for equal shares.
        average: Whether to take a run's moving average, where it keeps one.
        licence: Of the weights, as the user states it.
        say: Told what the user should hear.

    Raises:
        ValueError: If a model cannot be loaded or is in training, or the models cannot be merged.
    """
    if weights and not merge_with:
        raise ValueError("--weight is the share of a --merge; there is none")
    parts = shares(len(merge_with), weights)
    for one in (model, *merge_with):
        if not isinstance(one, Encoder):
            require_rest(one)
    loaded = [_load(one, average, say) for one in (model, *merge_with)]
    known = [Provenance.of(encoder) for encoder in loaded]
    for origin in known:
        for note in origin.notes:
            say(f"{origin.model}: {note}")
        step, steps = origin.step or 0, origin.steps or 0
        if (Path(origin.model) / "checkpoints").is_dir() and step < steps:
            say(f"{origin.model} did not end: this is its step {step:,} of {steps:,}")
    if not merge_with:
        return Ready(loaded[0], known[0].stating(licence))
    encoder, notes = merge(loaded, parts)
    for note in notes:
        say(note)
    return Ready(encoder, merged(encoder, list(zip(known, parts, strict=True)), notes).stating(licence))


def require_rest(model: str | Path) -> None:
    """A run that is in training is not exported: its newest checkpoint is another one a moment later.

    Raises:
        ValueError: If somebody trains in the folder just now.
    """
    place = Path(model)
    if (place / "checkpoints").is_dir() and (trainer := trainer_of(place)) is not None:
        cure = f"wait for its end, stop it, or name a checkpoint: {place / 'checkpoints' / 'STEP'}"
        raise ValueError(f"{place} is in training ({trainer}); {cure}")


def _load(model: str | Path | Encoder, average: bool, say: Say) -> Encoder:
    if isinstance(model, Encoder):
        return model
    encoder, notes = load_encoder(model, average=average)
    for note in notes:
        say(note)
    return encoder
