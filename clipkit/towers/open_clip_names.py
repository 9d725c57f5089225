"""What a name of a model that nobody knows may have meant."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path


def unknown_model(name: str, known: list[str]) -> str:
    """What to say of a name that nobody knows.

    Args:
        name: As the user wrote it.
        known: open_clip's own names.
    """
    place = Path(name)
    if len(place.parts) > 1 and place.parent.is_dir():  # a path: what lies beside it
        beside = sorted(path.name for path in place.parent.iterdir() if path.is_dir() and not path.name.startswith("."))
        near = [str(place.parent / x) for x in get_close_matches(place.name, beside, n=3, cutoff=0.4) or beside[-3:]]
    else:
        near = get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return (
        f"no model is called {name!r}: {hint}It may be an open_clip name ({len(known)} known, see open_clip.list_models()), NAME:TAG, "
        "a JSON file of an open_clip configuration, a run, a checkpoint or an exported folder, or hf-hub:org/repo"
    )
