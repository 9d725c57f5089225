"""Loose images in columns: parquet files, and folders that `datasets.save_to_disk` wrote.

Read by pyarrow alone, a few rows at a time: `datasets` is not imported, and no extension type is registered, so nothing in a file is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clipkit.config import DISTRIBUTION
from clipkit.config.json_text import parse_json
from clipkit.data.loose import Entry, Skipped, captions_of, entry_of, shown

_ROWS = 16
_BUFFER = 1 << 20  # bytes of a column that are read at once: a page is held then, not a whole row group


def saved_files(folder: Path) -> list[Path] | None:
    """The tables in a folder: those that `datasets.save_to_disk` wrote, or its parquet files; None if it is no such folder.

    Raises:
        ValueError: If it holds several splits, or files that it names are missing.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in folder.iterdir() if (path / "state.json").is_file())
        raise ValueError(f"{folder}: holds the splits {', '.join(splits) or 'none'}; name one, as in {folder}/train")
    state = folder / "state.json"
    if not state.is_file():
        return sorted(folder.glob("*.parquet")) or None
    try:
        names = [Path(str(file["filename"])).name for file in parse_json(state.read_text())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{state}: does not name the data's files ({error!r}); save the data set again") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or not names:
        raise ValueError(f"{folder}: {len(missing)} of {len(names)} files are missing: {', '.join(missing[:3])}")
    return [folder / name for name in names]


def read_columns(
    files: Sequence[Path], images: tuple[str, ...], captions: tuple[str, ...], fields: tuple[str, ...]
) -> Iterator[Entry | Skipped]:
    """The rows of parquet and Arrow files as entries.

    Args:
        files: The files, in order.
        images: Names that the column of images may have: its bytes, its path, or `datasets`' struct of both.
        captions: Names that the column of captions may have: texts, or lists of texts.
        fields: Further columns that are carried along as JSON.

    Raises:
        ValueError: If pyarrow is missing, or a file cannot be read or lacks a column.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        cure = f"pip install '{DISTRIBUTION}[parquet]'"
        raise ValueError(f"{files[0]}: parquet and Arrow files need pyarrow: {cure}") from error
    for file in files:
        try:
            yield from _rows(file, images, captions, fields)
        except (pa.ArrowException, OSError) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"{file}: cannot be read ({first}); is it whole?") from error


def _rows(
    file: Path, images: tuple[str, ...], captions: tuple[str, ...], fields: tuple[str, ...]
) -> Iterator[Entry | Skipped]:
    schema, batches = _open(file)
    image_column, caption_column = _column(file, schema, images, captions)
    _check_fields(file, schema, fields)
    row = 0
    for batch in batches(list(dict.fromkeys([image_column, caption_column, *fields]))):
        for start in range(0, len(batch), _ROWS):
            for values in batch.slice(start, _ROWS).to_pylist():
                place = f"{shown(file)} row {row}"
                row += 1
                texts = captions_of(values, (caption_column,))
                more = {name: _as_json(values[name]) for name in fields}
                if isinstance(values[caption_column], list):
                    more = {"captions": texts} | more
                yield entry_of(place, file.parent, _image(values[image_column]), texts, more)


def _open(file: Path) -> tuple[Any, Any]:
    """The schema, and a function from names of columns to record batches."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix.lower() == ".parquet":
        parquet = pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False)
        return parquet.schema_arrow, lambda names: parquet.iter_batches(_ROWS, columns=names, use_threads=False)
    source = pa.memory_map(str(file))
    try:
        stream = pa.ipc.open_stream(source)
        return stream.schema, lambda names: (batch.select(names) for batch in stream)
    except pa.ArrowInvalid:  # the other of Arrow's two forms
        source.seek(0)
        random = pa.ipc.open_file(source)
        numbers = range(random.num_record_batches)
        return random.schema, lambda names: (random.get_batch(number).select(names) for number in numbers)


def _column(file: Path, schema: Any, images: tuple[str, ...], captions: tuple[str, ...]) -> tuple[str, str]:
    """The names of the two columns, which must be of a kind that can be used."""
    by_lower = {name.lower(): name for name in reversed(schema.names)}
    found = []
    for names, usable, what in ((images, _holds_images, "images"), (captions, _holds_texts, "captions")):
        column = next((by_lower[name.lower()] for name in names if name.lower() in by_lower), None)
        if column is None:
            raise ValueError(
                f"{file}: the columns are {', '.join(schema.names) or 'none'}; needed: one of {', '.join(images)} and "
                f"one of {', '.join(captions)}; name them with --image-column and --caption-column"
            )
        kind = schema.field(column).type
        if not usable(kind):
            raise ValueError(f"{file}: the column {column} is of type {kind}, which holds no {what}; name another")
        found.append(column)
    return found[0], found[1]


def _holds_images(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return {"bytes", "path"} <= {kind.field(number).name for number in range(kind.num_fields)}
    return _is_text(kind) or types.is_binary(kind) or types.is_large_binary(kind)


def _holds_texts(kind: Any) -> bool:
    from pyarrow import types

    return _is_text(kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind))


def _check_fields(file: Path, schema: Any, fields: tuple[str, ...]) -> None:
    absent = [name for name in fields if name not in schema.names]
    if absent:
        raise ValueError(f"{file}: no column {', '.join(absent)}; the columns are {', '.join(schema.names)}")
    bytes_in = [name for name in fields if "binary" in str(schema.field(name).type)]
    if bytes_in:
        raise ValueError(f"{file}: the column {bytes_in[0]} holds bytes, which JSON cannot; leave it out of --fields")


def _image(value: Any) -> str | bytes:
    """An image's bytes, else its path; empty where there is neither."""
    if isinstance(value, dict):
        value = value["bytes"] or value["path"]
    return value if isinstance(value, str | bytes) else ""


def _as_json(value: Any) -> Any:
    """A cell as JSON says it best: no NaN; dates and decimals as texts."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    return value if value is None or isinstance(value, str | int | bool) else str(value)
