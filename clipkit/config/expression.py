"""The language of `filter:`: comparisons of columns and numbers with `and`, `or`, `not` and parentheses.

    either     := both ("or" both)*
    both       := one ("and" one)*
    one        := "not" one | "(" either ")" | value ("<" | "<=" | ">" | ">=" | "==" | "!=") value
    value      := a column's name | a number

It is read by this parser alone: a text of a configuration is never evaluated by Python.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

LONGEST = 2_000
DEEPEST = 40
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[-+]?(?:[0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)(?![A-Za-z_0-9.])"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign><=|>=|==|!=|<|>|\(|\)))",
    re.ASCII,
)
_WORDS = {"and", "or", "not"}
_RULE = "a filter compares columns with numbers, as in 'similarity > 0.28 and not (side < 200 or aspect > 3)'"

Sign = Literal["<", "<=", ">", ">=", "==", "!="]


@dataclass(frozen=True)
class Compare:
    """A comparison; each side is a column's name or a number."""

    left: str | float
    sign: Sign
    right: str | float


@dataclass(frozen=True)
class Not:
    """The opposite."""

    of: Expression


@dataclass(frozen=True)
class Many:
    """Several that must all hold (``and``), or of which one must (``or``)."""

    word: Literal["and", "or"]
    parts: tuple[Expression, ...]


Expression = Compare | Not | Many


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def parse_expression(text: str) -> Expression:
    """Read a filter.

    Args:
        text: At most 2,000 characters, at most 40 levels deep.

    Raises:
        ValueError: If it is no filter, with the place.

    Example:
        >>> parse_expression("similarity > 0.3 and not side < 200")
        Many(word='and', parts=(Compare(left='similarity', sign='>', right=0.3), Not(of=Compare(left='side', sign='<', right=200.0))))
    """
    if len(text) > LONGEST:
        raise ValueError(f"a filter of {len(text):,} characters; at most {LONGEST:,} are read")
    return _Parser(text).whole()


def names(expression: Expression) -> list[str]:
    """The columns that a filter names, each once, in order."""
    return list(dict.fromkeys(_names(expression)))


def _names(expression: Expression) -> Iterator[str]:
    if isinstance(expression, Compare):
        yield from (side for side in (expression.left, expression.right) if isinstance(side, str))
    else:
        for part in (expression.of,) if isinstance(expression, Not) else expression.parts:
            yield from _names(part)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._tokens())
        self.next = 0

    def _tokens(self) -> Iterator[_Token]:
        at, end = 0, len(self.text.rstrip())
        while at < end:
            match = _TOKEN.match(self.text, at)
            if match is None:
                raise self._fault(at + len(self.text[at:]) - len(self.text[at:].lstrip()))
            kind = str(match.lastgroup)
            word = match[kind]
            yield _Token(word if word in _WORDS else kind, word, match.start(kind))
            at = match.end()
        yield _Token("end", "the end", len(self.text))

    def _fault(self, at: int) -> ValueError:
        found = repr(self.text[at : at + 12]) if self.text[at:].strip() else "the end"
        return ValueError(f"{self.text!r}: {found} at character {at + 1} is not understood; {_RULE}")

    def _take(self, *texts: str) -> _Token | None:
        token = self.tokens[self.next]
        if token.kind != "end" and token.text in texts:
            self.next += 1
            return token
        return None

    def whole(self) -> Expression:
        found = self._many("or", 0)
        if self.tokens[self.next].kind != "end":
            raise self._fault(self.tokens[self.next].at)
        return found

    def _many(self, word: Literal["and", "or"], depth: int) -> Expression:
        parts = [self._one_level(word, depth)]
        while self._take(word):
            parts.append(self._one_level(word, depth))
        return parts[0] if len(parts) == 1 else Many(word, tuple(parts))

    def _one_level(self, word: Literal["and", "or"], depth: int) -> Expression:
        return self._many("and", depth) if word == "or" else self._one(depth)

    def _one(self, depth: int) -> Expression:
        if depth > DEEPEST:
            raise ValueError(f"a filter of more than {DEEPEST} levels; write it flatter")
        if self._take("not"):
            return Not(self._one(depth + 1))
        if self._take("("):
            inside = self._many("or", depth + 1)
            if not self._take(")"):
                raise self._fault(self.tokens[self.next].at)
            return inside
        left = self._value()
        sign = self._take("<", "<=", ">", ">=", "==", "!=")
        if sign is None:
            raise self._fault(self.tokens[self.next].at)
        right = self._value()
        if not isinstance(left, str) and not isinstance(right, str):
            raise ValueError(f"{self.text!r}: {left:g} {sign.text} {right:g} compares no column; {_RULE}")
        again = self.tokens[self.next]
        if again.kind == "sign" and again.text not in "()":
            raise ValueError(
                f"{self.text!r}: two comparisons in a row at character {again.at + 1}; join them with 'and'"
            )
        return Compare(left, cast(Sign, sign.text), right)

    def _value(self) -> str | float:
        token = self.tokens[self.next]
        if token.kind == "name":
            self.next += 1
            return token.text
        if token.kind != "number" or not math.isfinite(float(token.text)):
            raise self._fault(token.at)
        self.next += 1
        return float(token.text)
