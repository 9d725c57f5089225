"""Samples as one HTML page that needs nothing else: no network, no script, no byte of the shards' own files.

Everything from a shard may be hostile: texts are spelled out and escaped, pictures are encoded anew from their pixels, and the
page's own policy lets nothing but its style sheet and those pictures in.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image
from torch import Tensor

from clipkit.data.preview import Shown
from clipkit.data.visible import visible

MOST_SAMPLES = 500
_MOST_CAPTIONS, _MOST_METADATA, _MOST_CHARACTERS = 5, 20, 400
_SIDE, _SMALL_SIDE, _VIEW_SIDE = 360, 200, 112
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #1c1c1a; --soft: #62625c; --line: #dfdfda;
  --mat: #ecece8; --bad: #b3261e; --tint: #fdecea; }
@media (prefers-color-scheme: dark) { :root { --page: #161614; --card: #20201e; --ink: #ecece6; --soft: #a3a39b;
  --line: #363632; --mat: #2a2a27; --bad: #ff8a80; --tint: #3a2220; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 110rem; padding: 1.5rem clamp(1rem, 3vw, 3rem) 3rem; background: var(--page);
  color: var(--ink); font: 15px/1.45 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; }
h1 { margin: 0; font-size: 1.35rem; letter-spacing: -.01em; }
header { margin-bottom: 1.5rem; }
header p { margin: .25rem 0 0; color: var(--soft); overflow-wrap: anywhere; }
header .bad { color: var(--bad); font-weight: 600; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: 1rem; align-items: start; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
article.bad { border-color: var(--bad); }
.mat { display: flex; align-items: center; justify-content: center; height: 14rem; background: var(--mat); }
.mat img { width: 100%; height: 100%; object-fit: contain; display: block; }
.none { color: var(--soft); font-size: .9rem; }
.views { display: flex; gap: 2px; padding-top: 2px; background: var(--mat); }
.views img { flex: 1; min-width: 0; aspect-ratio: 1; object-fit: cover; }
.text { padding: .75rem .9rem .8rem; }
.caption { margin: 0 0 .45rem; max-height: 9em; overflow: auto; unicode-bidi: isolate; overflow-wrap: anywhere; white-space: pre-wrap; }
.caption + .caption { padding-top: .45rem; border-top: 1px solid var(--line); }
.fault { margin: 0 0 .45rem; padding: .35rem .55rem; border-radius: 6px; background: var(--tint); color: var(--bad);
  overflow-wrap: anywhere; font-size: .9rem; }
.facts, .place { margin: 0; color: var(--soft); font-size: .8rem; overflow-wrap: anywhere; }
.place { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .74rem; margin-top: .15rem; }
details { margin-top: .45rem; font-size: .8rem; color: var(--soft); }
summary { cursor: pointer; }
dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem .7rem; margin: .35rem 0 0; }
dt { overflow-wrap: anywhere; } dd { margin: 0; color: var(--ink); overflow-wrap: anywhere; unicode-bidi: isolate; }
@media print { body { background: none; } article { break-inside: avoid; } }
"""


def page(shown: Sequence[Shown], *, title: str, notes: Sequence[str]) -> str:
    """The page.

    Args:
        shown: The samples, in the order to show them.
        title: What they are of.
        notes: Lines below it.

    Returns:
        HTML, ASCII but for the samples' own texts.
    """
    bad = sum(bool(sample.faults) for sample in shown)
    lines = [f"<p>{_safe(note)}</p>" for note in notes]
    if bad:
        lines.append(f'<p class="bad">{bad:,} of the {len(shown):,} shown cannot be trained on</p>')
    side = _SIDE if len(shown) <= 100 else _SMALL_SIDE
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_safe(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<header>\n<h1>{_safe(title)}</h1>",
            *lines,
            "</header>\n<main>",
            *(_card(sample, side) for sample in shown),
            "</main>\n</body>\n</html>\n",
        )
    )


def _safe(text: str, most: int = _MOST_CHARACTERS) -> str:
    return escape(visible(text, most), quote=True)


def _card(sample: Shown, side: int) -> str:
    said = sample.captions[0] if sample.captions else f"sample {sample.key} without a caption"
    parts = ['<article class="bad">' if sample.faults else "<article>"]
    if sample.image is None:
        parts.append('<div class="mat"><span class="none">no picture</span></div>')
    else:
        parts.append(f'<div class="mat"><img alt="{_safe(said, 120)}" src="{_data(sample.image, side)}"></div>')
    if sample.views is not None:
        views = enumerate(sample.views, 1)
        images = (f'<img alt="augmented view {number}" src="{_data(view, _VIEW_SIDE)}">' for number, view in views)
        parts.append(f'<div class="views">{"".join(images)}</div>')
    parts.append('<div class="text">')
    parts += [f'<p class="fault">{_safe(fault)}</p>' for fault in sample.faults]
    parts += [f'<p class="caption" dir="auto">{_safe(text)}</p>' for text in sample.captions[:_MOST_CAPTIONS]]
    if (more := len(sample.captions) - _MOST_CAPTIONS) > 0:
        parts.append(f'<p class="facts">and {more:,} more captions</p>')
    if sample.facts:
        parts.append(f'<p class="facts">{_safe(" · ".join(sample.facts))}</p>')
    parts.append(f'<p class="place">{_safe(sample.key)}<br>{_safe(_tail(sample.shard))}</p>')
    parts.append(_metadata(sample.metadata))
    return "\n".join((*filter(None, parts), "</div>\n</article>"))


def _tail(path: str) -> str:
    """Folder and name: enough to find it by, and short enough to be read."""
    return "/".join(path.rsplit("/", 2)[-2:])


def _metadata(metadata: dict[str, str]) -> str:
    if not metadata:
        return ""
    rows = list(metadata.items())
    shown = "".join(
        f'<dt>{_safe(name, 60)}</dt><dd dir="auto">{_safe(value, 200)}</dd>' for name, value in rows[:_MOST_METADATA]
    )
    more = f"<dt>and {len(rows) - _MOST_METADATA:,} more</dt><dd></dd>" if len(rows) > _MOST_METADATA else ""
    return f"<details><summary>metadata ({len(rows):,})</summary><dl>{shown}{more}</dl></details>"


def _data(image: Tensor, side: int) -> str:
    """Pixels uint8 (3, H, W) as a small picture of our own making."""
    small = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    small.save(out, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
