"""Prompts of zero-shot classification, as text with ``{c}`` where the class name goes."""

from __future__ import annotations

DEFAULT_TEMPLATES = ("a photo of a {c}.", "{c}")
"""Used where neither the set nor the user brings any: the prompt of the CLIP paper, and the bare name."""


def fill(template: str, classname: str) -> str:
    """A prompt for one class. Not ``str.format``: templates and names may hold other braces.

    >>> fill("a photo of a {c} {sic}.", "crane {bird}")
    'a photo of a crane {bird} {sic}.'
    """
    return template.replace("{c}", classname)
