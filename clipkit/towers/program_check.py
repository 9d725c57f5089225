"""What a ``.pt2`` archive may hold to be read at all: plain numbers, operators of torch's own, and names.

torch's reader unpickles constants, weights and example inputs, compiles guards and expressions, and takes an operator's name as a
path into torch. None of that is needed for an encoder. So each member is checked here, and what is read afterwards is a new archive of
those members alone. That is no proof: the reader is large, and operators on chosen numbers may exhaust or damage the process.
Consent is asked for all the same.
"""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from clipkit.config.json_text import parse_json

PROGRAM, EXAMPLES = "models/model.json", "data/sample_inputs/model.pt"
_TENSORS = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
_PLACES = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_FRAME = {"archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id"}
_NAME = re.compile(r"(?:[\w.]|(?<=\.)-(?=\d))*", re.ASCII)  # open_clip's ResNets have modules called -1
_SYMBOL = re.compile(r"[su]\d+")
_STACK = re.compile(r"[^'\"\\\x00-\x1f]*")  # paths of modules, which no one runs
_ARITHMETIC = {"add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge", "getitem"}
_OPERATOR = re.compile(r"torch\.ops\.aten\.([a-z_]\w*)\.(\w+)", re.ASCII)
_FUNCTIONS = {"torch.sym_max", "torch.sym_min", "torch.sym_not", "math.ceil", "math.floor"}
_READS_FILES = {"from_file"}
_EXPRESSIONS = {"Symbol", "Integer", "Add", "Mul", "Min", "Max", "Mod", "PythonMod", "FloorDiv", "CleanDiv"}
_EXPRESSIONS |= {"Eq", "Ne", "Equality", "Unequality", "GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan"}
_PARTS = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.Add,
    ast.Sub,
    ast.Mult,
    ast.FloorDiv,
    ast.USub,
    ast.keyword,
    ast.Load,
)
_TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


def checked_archive(path: Path) -> io.BytesIO:
    """An archive as ``torch.export.save`` writes an encoder, without anything in it that could be run.

    Args:
        path: The ``.pt2`` file.

    Returns:
        A new archive of the members that were checked.

    Raises:
        ValueError: If it holds anything else, naming it.
    """
    try:
        reader = PT2ArchiveReader(io.BytesIO(path.read_bytes()))
        members = {name: reader.read_bytes(name) for name in _members(reader, path.stat().st_size)}
        _check_places(members)
        _check_program(_json(members, PROGRAM))
    except ValueError as error:
        raise ValueError(f"{path} is no program of an encoder alone: {error}") from error
    except (AssertionError, RuntimeError, OSError) as error:  # as the reader says that it is no archive
        raise ValueError(f"{path} is no archive that torch.export wrote: {str(error).splitlines()[0]}") from error
    found = io.BytesIO()
    with PT2ArchiveWriter(found) as writer:
        for name, data in members.items():
            writer.write_bytes(name, data)
    found.seek(0)
    return found


def _members(reader: PT2ArchiveReader, size: int) -> Iterator[str]:
    names = reader.get_file_names()
    if len(set(names)) < len(names):
        raise ValueError("two members have one name")
    if sum(map(reader.archive_file.get_record_size, names)) > size:
        raise ValueError("its members are larger than itself: torch.export packs nothing")
    for name in names:
        if name in _FRAME:
            continue
        if name not in (PROGRAM, EXAMPLES, *_PLACES) and not _TENSORS.fullmatch(name):
            code = ", machine code that only torch._inductor.aoti_load_package loads" if "aotinductor" in name else ""
            raise ValueError(f"it holds {name!r}{code}")
        yield name


def _json(members: dict[str, bytes], name: str) -> Any:
    if name not in members:
        raise ValueError(f"{name} is missing")
    return parse_json(members[name])


def _check_places(members: dict[str, bytes]) -> None:
    """No pickles: neither examples, nor weights or constants that are stored as such."""
    if members.get(EXAMPLES):
        raise ValueError(f"{EXAMPLES} holds example inputs, which are a pickle")
    for name in _PLACES:
        stored = _json(members, name)
        if not isinstance(stored, dict) or set(stored) != {"config"} or not isinstance(stored["config"], dict):
            raise ValueError(f"{name} is no list of tensors")
        folder = name.rsplit("/", 1)[0]
        for key, entry in stored["config"].items():
            if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
                raise ValueError(f"{key!r} in {name} is a pickle")
            if f"{folder}/{entry.get('path_name')}" not in members:
                raise ValueError(f"{key!r} in {name} lies in {entry.get('path_name')!r}")
        _walk(stored, "")


def _check_program(program: Any) -> None:
    if not isinstance(program, dict) or program.get("guards_code") != []:
        raise ValueError("it holds guards, which are Python code")
    if any(not _SYMBOL.fullmatch(name) for name in program.get("range_constraints", ())):
        raise ValueError("a range is of something else than a size")
    _walk(program, "")


def _walk(value: Any, key: str) -> None:
    """Every text is what its key allows, and a plain name where no key says more."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _require(name, _is_name(name), "a name")
            _walk(inner, key if key == "metadata" else name)
    elif isinstance(value, list):
        for inner in value:
            _walk(inner, key)
    elif isinstance(value, str):
        what, allowed = _TEXTS.get(key, ("a name", _is_name))
        _require(value, allowed(value), what)


def _require(text: str, fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(f"{text[:80]!r} is not {what} that an encoder needs")


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def _is_operator(text: str) -> bool:
    """An operator that torch itself registers under aten, or arithmetic of sizes; no other path into a module."""
    if (found := _OPERATOR.fullmatch(text)) is None:
        return text in _FUNCTIONS or (text.startswith("_operator.") and text[10:] in _ARITHMETIC)
    packet = getattr(torch.ops.aten, found[1], None)
    overload = isinstance(packet, torch._ops.OpOverloadPacket) and getattr(packet, found[2], None)
    return isinstance(overload, torch._ops.OpOverload) and found[1] not in _READS_FILES


def _is_expression(text: str) -> bool:
    """Arithmetic of sizes and whole numbers: sympy's reader would run anything that Python can write."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_part(node) for node in ast.walk(tree))


def _is_part(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _EXPRESSIONS or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int) or (
            isinstance(node.value, str) and _SYMBOL.fullmatch(node.value) is not None
        )
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name)
    return isinstance(node, _PARTS)


def _is_tree(text: str) -> bool:
    """How inputs and outputs are nested: in tuples, lists and dicts alone, no class by name."""
    found = parse_json(text)
    return isinstance(found, list) and len(found) == 2 and found[0] == 1 and _is_branch(found[1])


def _is_branch(found: Any) -> bool:
    known = isinstance(found, dict) and set(found) == {"type", "context", "children_spec"}
    if not known or found["type"] not in _TREES or found["context"] not in (None, "null", "[]"):
        return False
    return isinstance(found["children_spec"], list) and all(_is_branch(child) for child in found["children_spec"])


_TEXTS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "target": ("an operator", _is_operator),
    "as_operator": ("an operator", _is_operator),
    "expr_str": ("an expression of sizes", _is_expression),
    "in_spec": ("a nesting", _is_tree),
    "out_spec": ("a nesting", _is_tree),
    "metadata": ("a path of modules", lambda text: _STACK.fullmatch(text) is not None),
    "torch_version": ("a version", lambda text: re.fullmatch(r"[\w.+]*", text, re.ASCII) is not None),
    "as_string": ("an option", lambda text: re.fullmatch(r"[\w.,> -]*", text, re.ASCII) is not None),
}
