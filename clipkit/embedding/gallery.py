"""Results as one HTML page that fetches nothing; captions and keys come from strangers and are escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from clipkit.data.atomic import write_atomically
from clipkit.embedding.find import Hit

STYLE = """
:root { color-scheme: light dark; --line: #d0d4da; --soft: #5b6470; --back: #fff; --text: #16191d; }
@media (prefers-color-scheme: dark) { :root { --line: #3a4048; --soft: #9aa4b0; --back: #14171a; --text: #e8eaed; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 24px; font: 16px/1.5 system-ui, sans-serif; background: var(--back); color: var(--text); }
h1 { font-size: 22px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 32px 0 12px; overflow-wrap: anywhere; }
p { color: var(--soft); margin: 0 0 16px; }
form { display: flex; flex-wrap: wrap; gap: 8px; margin: 16px 0; }
input, select, button { font: inherit; padding: 8px 12px; border: 1px solid var(--line); border-radius: 6px; }
input, select, button { background: var(--back); color: var(--text); }
input[type=search] { flex: 1 1 260px; } button { cursor: pointer; font-weight: 600; }
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
figure img { display: block; width: 100%; height: 130px; object-fit: contain; background: #8881; }
figure .none { display: grid; place-items: center; height: 130px; color: var(--soft); }
figcaption { padding: 8px; font-size: 13px; line-height: 1.35; overflow-wrap: anywhere; }
figcaption b { display: block; font-variant-numeric: tabular-nums; } figcaption span { color: var(--soft); }
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(answers: Sequence[tuple[str, Sequence[Hit]]], title: str) -> str:
    """The page.

    Args:
        answers: Each question with its results.
        title: Of the page.
    """
    sections = "".join(f"<h2>{escape(question)}</h2>{cards(hits)}" for question, hits in answers)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f"<p>The nearest first, with the cosine of each.</p>{sections}</body></html>\n"
    )


def cards(hits: Sequence[Hit]) -> str:
    """Results as cards."""
    return f'<div class="hits">{"".join(map(_card, hits))}</div>'


def write_page(path: Path, answers: Sequence[tuple[str, Sequence[Hit]]], title: str) -> None:
    """Write the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(page(answers, title).encode(errors="replace")))


def _card(hit: Hit) -> str:
    shown = hit.shown
    words = shown.caption or shown.key
    picture = '<div class="none">no thumbnail</div>'
    if shown.thumbnail:
        data = base64.b64encode(shown.thumbnail).decode()
        picture = f'<img alt="{escape(words)}" src="data:image/jpeg;base64,{data}">'
    below = f"<span>{escape(shown.key)}</span>" if shown.caption else ""
    return f"<figure>{picture}<figcaption><b>{hit.score:.3f}</b>{escape(words)}<br>{below}</figcaption></figure>"
