"""`loose` sources become shards before a run starts: packed into the cache, a part held out as a task."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clipkit.building import cache_folder
from clipkit.callbacks.say import say
from clipkit.config import ConfigError, RunConfig
from clipkit.config.faults import problems_of
from clipkit.config.report import Place

HELD_OUT = "val"


def pack_loose(config: RunConfig) -> RunConfig:
    """The configuration with shards for every ``loose`` source, and with a task for each part that is held out.

    The same configuration over the same data gives the same, in every process, so that ranks agree and a run can go on.

    Raises:
        ValueError: If a source cannot be packed, or the configuration no longer holds with what it gave.
    """
    if not any(source.loose for source in (*config.data.train.values(), *config.data.val.values())):
        return config
    tree = config.model_dump(mode="json")
    tasks: dict[str, Any] = {}
    for kind, sources in (("train", config.data.train), ("val", config.data.val)):
        for name, source in sources.items():
            if source.loose is not None:
                share = config.data.pack.split if kind == "train" else 0.0
                shards, task, listed = _pack_one(config, source.loose, share)
                written = tree["data"][kind][name]
                written |= {"shards": [shards], "loose": None}
                if listed and "fields" not in source.model_fields_set:  # one is drawn each time, not the first for ever
                    written["fields"]["text"] = ["json.captions"]
                tasks |= {name: task} if task else {}
    tree["evaluate"]["tasks"] = tasks | tree["evaluate"]["tasks"]  # the first figure of the first task decides the best
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        place = "the configuration, once its loose data was packed"
        raise ConfigError(place, problems_of(error, tree, {}, Place(place))) from None


def _pack_one(config: RunConfig, loose: str, share: float) -> tuple[str, dict[str, Any] | None, bool]:
    """The shards of a source, the task on its held-out part, and whether each sample lists its captions."""
    from clipkit.data.pack import PackOptions
    from clipkit.data.packed import holds_shards, packed

    source = Path(loose).expanduser()
    if holds_shards(source):
        if share:
            say(f"{loose}: shards already, so nothing is packed and nothing held out of them")
        return loose, None, False
    spec = config.data.pack
    options = PackOptions(
        image_column=spec.image_column,
        caption_column=spec.caption_column,
        split=(HELD_OUT, share) if share else None,
        resize=spec.resize,
        strip_exif=spec.strip_exif,
        fields=None if spec.fields is None else tuple(spec.fields),
    )
    workers = max(1, min(8, (os.cpu_count() or 1) - 1))
    found = packed(source, cache_folder(config), options, workers=workers, say=say)
    if found.held_out is None:
        return str(found.train), None, found.listed
    kind = "zero_shot" if found.classes else "retrieval"
    return str(found.train), {"kind": kind, "data": str(found.held_out)}, found.listed
