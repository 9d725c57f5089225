"""The formats by name; each is imported when it is asked for."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from clipkit.exporters.candidate import Format


class Entry(NamedTuple):
    """Where a format is.

    Args:
        module: Of ``clipkit.exporters``; its ``FORMAT`` is the class.
        needs: Packages beyond clipkit's own that it imports.
        extra: The extra that brings them.
    """

    module: str
    needs: tuple[str, ...] = ()
    extra: str = ""


FORMATS: dict[str, Entry] = {
    "open_clip": Entry("open_clip"),
    "onnx": Entry("onnx", ("onnx", "onnxruntime", "onnxscript"), "onnx"),
    "clip_as_service": Entry("clip_as_service", ("onnx", "onnxruntime", "onnxscript"), "onnx"),
    "immich": Entry("immich", ("onnx", "onnxruntime", "onnxscript", "transformers", "tokenizers"), "onnx,hf"),
    "torch_export": Entry("torch_export"),
    "transformers": Entry("transformers", ("transformers", "tokenizers"), "hf"),
    "sentence_transformers": Entry(
        "sentence_transformers", ("sentence_transformers", "transformers", "tokenizers"), "sentence-transformers"
    ),
    "openvino": Entry("openvino", ("openvino", "onnx", "onnxscript", "onnxruntime"), "openvino"),
    "aot_inductor": Entry("aot_inductor"),
}


def make_format(name: str, options: Mapping[str, Any] | None = None) -> Format:
    """The format of a name.

    Args:
        name: A key of ``FORMATS``.
        options: Fields of its class, such as ``{"precision": "float16"}``.

    Raises:
        ValueError: If there is no such format, option or value, or what it needs is not installed; with the known ones, or the install line.
    """
    if name not in FORMATS:
        others = f"known: {', '.join(FORMATS)}; the generic ONNX files are onnx"
        raise ValueError(f"there is no export format {name!r}; {others}")
    entry = FORMATS[name]
    missing = [package for package in entry.needs if importlib.util.find_spec(package) is None]
    if missing:
        from clipkit.config.names import DISTRIBUTION  # late: it loads pydantic

        line = f"pip install '{DISTRIBUTION}[{entry.extra}]'"
        raise ValueError(f"the format {name} needs {', '.join(missing)}, which is not installed: {line}")
    kind = importlib.import_module(f"clipkit.exporters.{entry.module}").FORMAT
    known = [field.name for field in dataclasses.fields(kind)]
    types = get_type_hints(kind)
    for option, value in (options or {}).items():
        if option not in known:
            said = f"its options are {', '.join(known)}" if known else "it has none"
            raise ValueError(f"the format {name} has no option {option!r}; {said}")
        if said := _refused(value, types[option]):
            raise ValueError(f"the format {name} takes no {option}={value!r}; {said}")
    return cast("Format", kind(**(options or {})))


def _refused(value: Any, wanted: Any) -> str:
    """What an option of a type takes, where it does not take a value; 18.0 and True are not 18 and 1, which they equal.

    >>> _refused("int8", Literal["int64", "int32"])
    'int64, int32'
    >>> _refused(18.0, int), _refused(18, int)
    ('int', '')
    """
    if get_origin(wanted) is Literal:
        known = get_args(wanted)
        taken = any(type(value) is type(one) and value == one for one in known)
        return "" if taken else ", ".join(map(str, known))
    return "" if type(value) is wanted else str(wanted.__name__)
