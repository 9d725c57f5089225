import base64
import io
import json
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from clipkit.data.augment import Augment
from clipkit.data.contact_sheet import page
from clipkit.data.preview import Views, draw
from clipkit.data.source import Source
from clipkit.data.visible import visible

from .conftest import image_bytes, pair, write_tar

PLACES = Source("x", ("-",), fields={"image": ("jpg",), "text": ("txt",)}).places()
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "h1", "p", "main", "article", "div", "span", "img"),
    *("br", "details", "summary", "dl", "dt", "dd"),
}
ATTRIBUTES = {"lang", "charset", "http-equiv", "content", "name", "class", "alt", "src", "dir"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title><h1>owned</h1>",
    "&lt;b&gt; &amp;",
    "a\u202egnp.exe",
    "<!-- ",
    "\x00\x1b[2J\u2028",
]


class Page(HTMLParser):
    """Every tag, attribute and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.images, self.texts = set(), set(), [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")


@pytest.fixture
def hostile(tmp_path):
    files = []
    for number, text in enumerate(HOSTILE):
        key = f"{number}<b onclick=x>'\""
        held = json.dumps({text: text, "list": [text]})
        files += [(f"{key}.jpg", image_bytes(number)), (f"{key}.txt", text.encode()), (f"{key}.json", held.encode())]
    files += [("bad<i>.jpg", b"<script>"), ("bad<i>.txt", b"fine")]
    return str(write_tar(tmp_path / "a.tar", files))


def test_nothing_of_a_shard_becomes_markup(hostile):
    shown = draw([hostile], PLACES, samples=20, seed=0, cache=None)
    assert len(shown) == len(HOSTILE) + 1
    found = Page(page(shown, title="</title><script>", notes=["<script>"]))
    assert found.tags <= TAGS
    assert found.attributes <= ATTRIBUTES
    for text in HOSTILE:
        assert visible(text.strip()) in found.texts, "a caption must be there as text"
    assert not {"\u202e", "\x00", "\x1b", "\u2028"} & set("".join(found.texts))
    assert any("format: starts with" in text for text in found.texts)


def test_only_pixels_of_our_own_encoding_are_embedded(tmp_path):
    secret = b"XSECRETX"
    buffer = io.BytesIO()
    Image.new("RGB", (700, 500), "red").save(buffer, "JPEG", comment=secret)
    data = buffer.getvalue() + b"<script>"
    assert secret in data
    path = str(write_tar(tmp_path / "a.tar", [("0.jpg", data), ("0.txt", b"red")]))
    found = Page(page(draw([path], PLACES, samples=1, seed=0, cache=None), title="t", notes=[]))
    (image,) = found.images
    assert image["alt"] == "red"
    kind, _, encoded = image["src"].partition(",")
    held = base64.b64decode(encoded)
    assert kind == "data:image/webp;base64"
    assert secret not in held
    assert b"script" not in held
    with Image.open(io.BytesIO(held)) as picture:
        assert max(picture.size) <= 360
        assert picture.convert("RGB").getpixel((5, 5))[0] > 240


def test_samples_are_drawn_evenly_by_the_seed(make_shards):
    shards = make_shards([3, 40, 40, 40])

    def keys(samples, seed):
        return [(sample.shard, sample.key) for sample in draw(shards, PLACES, samples=samples, seed=seed, cache=None)]

    counts = [sum(shard == path for shard, _ in keys(40, 0)) for path in shards]
    assert sum(counts) == 40
    assert counts[0] == 3
    assert max(counts) - min(counts[1:]) <= 3
    assert keys(8, 1) == keys(8, 1) != keys(8, 2)
    assert len(set(keys(200, 0))) == 123
    assert len({shard for shard, _ in keys(2, 0)}) == 2


def test_a_shard_that_cannot_be_read_is_shown_with_the_reason(tmp_path, make_shards):
    (good,) = make_shards([4])
    bad = tmp_path / "bad.tar"
    bad.write_bytes(b"junk" * 300)
    shown = draw([good, str(bad)], PLACES, samples=10, seed=0, cache=None)
    assert [bool(sample.faults) for sample in shown] == [True, False, False, False, False]
    assert "no tar header" in "".join(Page(page(shown, title="t", notes=[])).texts)


def test_views_are_those_of_the_augmentation(tmp_path):
    files = [(f"0.{extension}", data) for extension, data in pair(0).items()]
    views = Views(Augment((16, 16), flip=0.5), seed=3, count=2)
    (sample,) = draw([str(write_tar(tmp_path / "a.tar", files))], PLACES, samples=1, seed=0, cache=None, views=views)
    again = views.transform([sample.image, sample.image], seed=3, positions=torch.arange(2).numpy())
    assert torch.equal(sample.views, again)
    assert len(Page(page([sample], title="t", notes=[])).images) == 3
