"""Captions, keys and names as HTML: in the report, the preview, the gallery and the served page; and as the words of an explanation."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import torch
from PIL import Image

import clipkit.report
from clipkit.data.contact_sheet import page as contact_sheet
from clipkit.data.preview import Shown as Previewed
from clipkit.embedding.find import Hit
from clipkit.embedding.gallery import page as gallery
from clipkit.embedding.store import Shown
from tests.security.lab import Exploit, Lab

TEXTS = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\"><svg onload=document.title='owned'>",
    "' onmouseover='document.title=1' x='",
    "</style></title></textarea><script>document.title='owned'</script>",
    "]]><script>document.title='owned'</script><!--",
    "{{ 7 * 7 }}{% include '/etc/passwd' %}",
    "<iframe srcdoc=\"<script>parent.document.title='owned'</script>\"></iframe>",
    "<a href=\"javascript:document.title='owned'\">x</a>",
)


class Elements(HTMLParser):
    """What a page would do: elements and attributes that run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.active: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "svg", "link", "base", "form") or (
            tag == "img" and ("src", "x") in attrs
        ):
            self.active.append(tag)
        for name, value in attrs:
            if name.startswith("on") or (value or "").strip().lower().startswith("javascript:"):
                self.active.append(f"{tag} {name}")


def active(text: str) -> list[str]:
    """The elements and attributes of a page that run or fetch."""
    elements = Elements()
    elements.feed(text)
    return elements.active


def unescaped(lab: Lab) -> None:
    """A template as jinja2 fills it by default."""
    page = jinja2.Template("<ul>{% for t in texts %}<li title='{{ t }}'>{{ t }}</li>{% endfor %}</ul>").render(
        texts=TEXTS
    )
    lab.harmed(len(active(page)) >= 6)


def pages(lab: Lab) -> dict[str, str]:
    """Each page of ours around the hostile texts, as the verbs write them."""
    members = {}
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 90)).save(file, "PNG")
    for number, text in enumerate(TEXTS):
        key = f"{number:05d}<b onclick=x>"
        members |= {f"{key}.png": file.getvalue(), f"{key}.txt": text.encode()}
    shard = lab.tar("<img src=x onerror=x>.tar", members)
    preview = lab.folder / "preview.html"
    lab.passed("data", "preview", shard, "--out", preview)
    lab.passed("embed", lab.world.run, shard, "--out", lab.folder / "embedded")
    found = lab.folder / "found.html"
    lab.passed("search", lab.folder / "embedded", *TEXTS[:2], "--k", "9", "--html", found)
    previewed = Previewed(
        TEXTS[0],
        TEXTS[1],
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        [TEXTS[2]],
        list(TEXTS),
        dict(zip(TEXTS, TEXTS, strict=True)),
        [TEXTS[3]],
    )
    hits = [Hit(0.5, "images", 0, Shown(text, text, text, None)) for text in TEXTS]
    return {
        "preview": preview.read_text(),
        "found": found.read_text(),
        "sheet": contact_sheet([previewed], title=TEXTS[0], notes=TEXTS),
        "gallery": gallery([(text, hits) for text in TEXTS], TEXTS[0]),
        "served": served(lab.folder / "embedded"),
        "report": reported(lab),
    }


def reported(lab: Lab) -> str:
    """The page of a run whose classes, captions, task and folder are hostile, less what the page itself brings."""
    for number, text in enumerate(TEXTS):
        for place in (lab.folder / "classes" / TEXTS[1], lab.folder / "captioned"):
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (20 * number, 30, 90)).save(place / f"{number}.png")
        (lab.folder / "captioned" / f"{number}.txt").write_text(f"{text}\n")
    (lab.folder / "classes" / "square").mkdir()
    Image.new("RGB", (16, 16)).save(lab.folder / "classes" / "square" / "0.png")
    tasks = {
        "classes": {"kind": "zero_shot", "data": str(lab.folder / "classes")},
        "pairs": {"kind": "retrieval", "data": str(lab.folder / "captioned")},
    }
    run, out = lab.folder / "<b onclick=x>", lab.folder / "report.html"
    lab.passed("fit", lab.config(evaluate={"every": "2 steps", "tasks": tasks}, run=str(run)))
    lab.passed("report", run, "--out", out)
    text, brought = out.read_text(), Path(clipkit.report.__path__[0]) / "templates" / "report.js"
    own = f"<script>{brought.read_text()}</script>"
    assert text.count(own) == 1, "the script that its policy names by its hash"
    for piece in (own, '<link rel="icon" href="data:,">'):
        text = text.replace(piece, "")
    return re.sub("<svg (?=class=|viewBox=)", "<g ", text)  # its charts


def explained(lab: Lab) -> None:
    """Words become pixels: a PNG of the three chunks that hold them, nothing of the text in its bytes or its name."""
    picture = lab.folder / "picture.png"
    Image.new("RGB", (16, 16), (200, 30, 90)).save(picture)
    for text in (TEXTS[0], TEXTS[1], "\x1b[2J\u202e{{ 7 * 7 }} $\\frac{1}{0}$"):
        out = lab.folder / "explained.png"
        lab.passed("explain", lab.world.run, picture, text, "--out", out)
        assert "\x1b" not in lab.said
        for path in (out, out.with_suffix(".words.png")):
            assert chunks(path.read_bytes()) == {b"IHDR", b"IDAT", b"IEND"}


def chunks(data: bytes) -> set[bytes]:
    """Kinds of the chunks of a PNG."""
    found, at = set(), 8
    while at < len(data):
        found.add(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4])
    return found


def served(folder: Path) -> str:
    """The page that ``search --serve`` answers with, all results and an error."""
    from fastapi.testclient import TestClient

    from clipkit import api
    from clipkit.embedding.serve import LOOPBACK, application

    client = TestClient(application(api.finder(folder), hosts=list(LOOPBACK)), base_url="http://127.0.0.1")
    answers = [
        client.get("/", params={"q": text, "k": 9, "of": kind})
        for text in TEXTS
        for kind in ("images", "texts", TEXTS[0])
    ]
    assert all("script-src" not in answer.headers["content-security-policy"] for answer in answers)
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    return "".join(answer.text.replace('<form method="get" action="/" role="search">', "") for answer in answers)


def escaped(lab: Lab) -> None:
    """Shown as they are written, and nothing of them is markup."""
    for name, text in pages(lab).items():
        found = active(text)
        assert not found, (name, found)
        assert "&lt;" in text or "served" in name, name
        lab.harmed(found)
    explained(lab)


EXPLOITS = (Exploit("captions as HTML", unescaped, escaped),)
