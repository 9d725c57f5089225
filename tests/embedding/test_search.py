"""Search: against a slow formula, by the command line, as a gallery and as a page in a browser."""

import dataclasses
import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from clipkit import api
from clipkit.cli import embed as verbs
from clipkit.cli import main
from clipkit.embedding import search as module
from clipkit.embedding.approximate import Index
from clipkit.embedding.embed import embed
from clipkit.embedding.find import Finder
from clipkit.embedding.gallery import page
from clipkit.embedding.search import top_k
from clipkit.embedding.store import Store
from clipkit.encoder import Encoder


@pytest.mark.parametrize("seed", range(20))
def test_top_k_equals_sorting_everything(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 7)
    monkeypatch.setattr(module, "_QUERIES", 2)
    draw = torch.Generator().manual_seed(seed)
    few = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0.5, 0.5, 0.5, 0.5]])
    every = few[torch.randint(0, 3, (40,), generator=draw)].half().numpy()  # many ties, exact in binary
    query = normalize(torch.randn(3, 4, generator=draw), dim=1)
    parts = [every[:11], every[11:11], every[11:]]
    for k in (1, 5, 39, 60):
        scores, rows = top_k(parts, query, k)
        slow = (query.double() @ torch.from_numpy(every.astype(np.float64)).T).float()
        order = [sorted(range(40), key=lambda row, one=one: (-one[row], row))[:k] for one in slow.tolist()]
        assert rows.tolist() == order
        assert torch.equal(scores, slow.gather(1, torch.tensor(order)))


def test_top_k_refuses() -> None:
    with pytest.raises(ValueError, match="k=0: at least one"):
        top_k([np.eye(2, dtype=np.float16)], torch.eye(2), 0)
    with pytest.raises(ValueError, match="the query has 3 values, the embeddings 2"):
        top_k([np.eye(2, dtype=np.float16)], torch.eye(3), 1)


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with captions, some of them hostile."""
    folder = tmp_path_factory.mktemp("album")
    for number in range(12):
        colour = np.random.default_rng(number).integers(0, 256, (24, 30, 3)).astype(np.uint8)
        Image.fromarray(colour).save(folder / f"{number:02d}.png")
        words = "<script>document.title='owned'</script>" if number == 3 else f"picture number {number}"
        (folder / f"{number:02d}.txt").write_text(f"{words}\nanother of {number}")
    return folder


@pytest.fixture(scope="module")
def finder(album: Path, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Finder:
    out = tmp_path_factory.mktemp("embedded") / "out"
    embed(encoder, album, out)
    return Finder(Store(out), encoder)


def test_a_picture_finds_itself_and_texts_their_picture(finder: Finder, album: Path) -> None:
    for number in (0, 7, 11):
        hit = finder.picture((album / f"{number:02d}.png").read_bytes(), 1)[0]
        assert hit.shown.key == f"{number:02d}.png"
        assert hit.score == pytest.approx(1, abs=2e-3)  # stored as fp16
    hits = finder.words(["another of 5"], 1, "texts")[0]
    assert (hits[0].shown.caption, hits[0].shown.key) == ("another of 5", "05.png")
    assert len(finder.words(["a", "b"], 100)[1]) == 12


def test_an_index_finds_the_same(album: Path, finder: Finder, tmp_path: Path) -> None:
    approximate = Finder(finder.store, finder.encoder, indices=tmp_path)
    for query in ("picture number 2", "anything"):
        exact = [(hit.row, round(hit.score, 4)) for hit in finder.words([query], 5)[0]]
        assert [(hit.row, round(hit.score, 4)) for hit in approximate.words([query], 5)[0]] == exact
    made = list(tmp_path.iterdir())
    assert len(made) == 1
    again = Finder(finder.store, finder.encoder, indices=tmp_path)
    assert len(again.words(["anything"], 3)[0]) == 3
    assert list(tmp_path.iterdir()) == made


def test_a_broken_index_is_made_anew(finder: Finder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Finder(finder.store, finder.encoder, indices=tmp_path).words(["anything"], 3)
    for damage in (b"", b"no index at all" * 100):
        next(tmp_path.iterdir()).write_bytes(damage)
        caplog.clear()
        assert Finder(finder.store, finder.encoder, indices=tmp_path).words(["anything"], 3) == first
        assert "is made anew" in caplog.text


def test_an_index_of_equal_rows_gives_as_many_as_asked(tmp_path: Path) -> None:
    rows = np.tile(np.eye(1, 8, dtype=np.float16), (3000, 1))
    found = Index([rows], tmp_path / "x.usearch").top_k(torch.eye(2, 8), 700)
    assert found[0].shape == found[1].shape == (2, 700)
    assert len(set(found[1][0].tolist())) == 700


def test_pictures_are_embedded_on_first_use(album: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = api.search(album, ["picture number 4"], k=3, model=encoder)
    monkeypatch.setattr("clipkit.embedding.embed._embed_part", None)  # the second time nothing is embedded
    assert api.search(album, ["picture number 4"], k=3, model=encoder) == first
    assert not (album / "manifest.json").exists()


def test_what_is_refused(album: Path, finder: Finder, encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name a model with --model to embed its pictures"):
        api.search(album, ["x"])
    with pytest.raises(ValueError, match="an empty query"):
        finder.words([" "], 1)
    with pytest.raises(ValueError, match="the picture cannot be read"):
        finder.picture(b"GIF89a", 1)
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        api.search(tmp_path / "nowhere", ["x"])
    other = Encoder.from_pair(other_pair(), model="other", pretrained=None)
    with pytest.raises(ValueError, match="was embedded by tiny with other weights than other's"):
        Finder(finder.store, other)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(ValueError, match="no manifest of embeddings"):
        api.search(tmp_path / "odd", ["x"], model=encoder)


def other_pair() -> Any:
    from clipkit.towers.open_clip import pair_from_config

    from ..conftest import TINY_MODEL

    torch.manual_seed(1)
    return pair_from_config(TINY_MODEL, preprocess={})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["red", "--html", "letter.txt"], "--html letter.txt: a gallery is a page; name a file that ends in .html"),
        (["red", "--serve"], "--serve takes its questions in the browser"),
        (["--serve", "--port", "PORT"], r"--host 127.0.0.1 --port PORT: cannot listen there"),
        (["--image", "broken.jpg"], r"broken.jpg cannot be read \(truncated"),
    ],
)
def test_the_command_refuses(
    finder: Finder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(api, "load", lambda *_, **__: finder.encoder)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "letter.txt").write_text("dear")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code = main.run(["search", str(finder.store.folder), *(word.replace("PORT", port) for word in more)])
    told = capsys.readouterr()
    assert code == 2
    assert re.search(message.replace("PORT", port), told.err), told.err
    assert "serving" not in told.out
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_an_over_long_query_is_said(finder: Finder, caplog: pytest.LogCaptureFixture) -> None:
    finder.words(["word " * 200, "short"], 1)
    assert "1 of 2 queries are longer than the context of the model and were cut" in caplog.text


def test_what_is_printed_moves_no_cursor(
    finder: Finder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hit = finder.words(["x"], 1)[0][0]
    shown = dataclasses.replace(hit.shown, caption="a\x1b[2Jb\x07", key="k\u202e\x1b]0;owned\x07")
    monkeypatch.setattr(api, "search", lambda *_, **__: [("q", [dataclasses.replace(hit, shown=shown)])])
    verbs.search(Path("folder"), ["q"], image=None, html=None)
    printed = capsys.readouterr().out
    assert "a[2Jb" in printed
    assert not {"\x1b", "\x07", "\u202e"} & set(printed)


def _more_rows(folder: Path) -> None:
    place = folder / "metadata" / "metadata_00000.parquet"
    table = pq.read_table(place)
    pq.write_table(pa.concat_tables([table, table]), place)
    _record(folder, {"files": sizes(folder)})


def _record(folder: Path, change: dict[str, Any]) -> None:
    place = folder / "parts" / "00000.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | change))


def sizes(folder: Path) -> dict[str, list[int]]:
    names = json.loads((folder / "parts/00000.json").read_text())["files"]
    return {name: [(folder / name).stat().st_size, 0] for name in names}


def _billion(folder: Path) -> None:
    place = folder / "img_emb" / "img_emb_00000.npy"
    data = place.read_bytes()
    dim = json.loads((folder / "manifest.json").read_text())["dim"]
    place.write_bytes(
        data[:10] + data[10:128].replace(b"(12, %d), }     " % dim, b"(%d, %d), }" % (10**6, dim)) + data[128:]
    )


def _text_thumbnails(folder: Path) -> None:
    place = folder / "metadata" / "metadata_00000.parquet"
    table = pq.read_table(place)
    at = table.schema.get_field_index("thumbnail")
    pq.write_table(table.set_column(at, "thumbnail", pa.array([[1]] * len(table))), place)
    _record(folder, {"files": sizes(folder)})


def _rows_beyond(folder: Path) -> None:
    place = folder / "texts" / "texts_00000.parquet"
    table = pq.read_table(place)
    pq.write_table(table.set_column(1, "image_row", pa.array([10**6] * len(table))), place)
    _record(folder, {"files": sizes(folder)})


def _not_finite(folder: Path) -> None:
    place = folder / "img_emb" / "img_emb_00000.npy"
    data = bytearray(place.read_bytes())
    data[-40:] = b"\xff" * 40
    place.write_bytes(data)


def _no_counts(folder: Path) -> None:
    place = folder / "manifest.json"
    found = json.loads(place.read_text())
    del found["images"]
    place.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: None, None),
        (_more_rows, r"metadata_00000.parquet has 24 rows for 12 embeddings"),
        (_billion, r"img_emb_00000.npy"),
        (_text_thumbnails, r"metadata_00000.parquet cannot be read"),
        (_rows_beyond, r"texts_00000.parquet: image_row 1000000 of 12 pictures"),
        (_not_finite, r"img_emb_00000.npy is damaged: .* run the same `clipkit embed` again"),
        (_no_counts, r"manifest.json: no manifest of embeddings"),
        (lambda folder: _record(folder, {"files": [1]}), "part 0 is not whole"),
        (lambda folder: _record(folder, {"files": {"../../etc/passwd": [1, 1]}}), "part 0 is not whole"),
        (lambda folder: _record(folder, {"images": 10**9}), r"img_emb_00000.npy: float16 \(12, \d+\), its record says"),
    ],
)
def test_a_strangers_folder_is_refused_in_words(finder: Finder, tmp_path: Path, harm: Any, message: str | None) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finder.store.folder, folder)
    harm(folder)
    if message is None:
        assert "<figure>" in everything(folder, finder.encoder)
        return
    with pytest.raises(ValueError, match=message):
        everything(folder, finder.encoder)


def everything(folder: Path, encoder: Encoder) -> str:
    asked = Finder(Store(folder), encoder)
    return page([("q", asked.words(["x"], 12)[0] + asked.words(["x"], 24, "texts")[0])], "T")


def test_a_gallery_escapes_what_it_shows(finder: Finder) -> None:
    shown = page([("<b>q</b>", finder.words(["x"], 12)[0])], "T")
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown
    assert "&lt;b&gt;q" in shown
    assert shown.count("data:image/jpeg;base64,") == 12


@pytest.fixture(scope="module")
def client(finder: Finder) -> Any:
    from fastapi.testclient import TestClient

    from clipkit.embedding.serve import LOOPBACK, application

    return TestClient(application(finder, hosts=list(LOOPBACK)), base_url="http://127.0.0.1")


def test_the_api(client: Any, finder: Finder, album: Path) -> None:
    hits = client.get("/api/search", params={"q": "picture number 1", "k": 4}).json()["hits"]
    expected = finder.words(["picture number 1"], 4)[0]
    assert [(hit["row"], hit["score"]) for hit in hits] == [(hit.row, pytest.approx(hit.score)) for hit in expected]
    found = client.post("/api/search?k=1", content=(album / "06.png").read_bytes()).json()["hits"]
    assert found[0]["key"] == "06.png"
    for query in ({"q": "x", "k": 0}, {"q": "x", "of": "sounds"}, {"q": ""}, {"q": "x", "k": "many"}, {}):
        answer = client.get("/api/search", params=query)
        assert answer.status_code == 400
        assert answer.json()["error"]
    assert client.post("/api/search", content=b"no picture").status_code == 400
    assert client.post("/api/search", content=bytes((16 << 20) + 1)).status_code == 413
    assert client.get("/api/search?q=x", headers={"host": "evil.example"}).status_code == 400
    assert "note" not in client.get("/api/search?q=x").json()
    long = client.get("/api/search", params={"q": "word " * 200})
    assert long.json()["note"].startswith("the question is longer than the context")
    page = client.get("/", params={"q": "word " * 200}).text
    assert "was cut" in page
    assert "<figure>" in page


def test_who_serves_everywhere_answers_to_numbers_and_no_strange_name(finder: Finder) -> None:
    from fastapi.testclient import TestClient

    from clipkit.embedding.serve import application, names_of

    here = TestClient(application(finder, hosts=names_of("0.0.0.0")), base_url="http://192.168.1.5:8008")
    assert here.get("/api/search?q=x").status_code == 200
    assert here.get("/api/search?q=x", headers={"host": "[fe80::1]:8008"}).status_code == 200
    assert here.get("/api/search?q=x", headers={"host": "evil.example"}).status_code == 400
    alone = TestClient(application(finder, hosts=names_of("127.0.0.1")), base_url="http://192.168.1.5")
    assert alone.get("/api/search?q=x").status_code == 400


def test_the_page_escapes(client: Any) -> None:
    answer = client.get("/", params={"q": '"><script>alert(1)</script>'})
    assert "<script>" not in answer.text
    assert "script-src" not in answer.headers["content-security-policy"]  # default-src 'none' holds for scripts
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.fixture(scope="module")
def served(finder: Finder) -> Iterator[str]:
    import uvicorn

    from clipkit.embedding.serve import LOOPBACK, application

    server = uvicorn.Server(
        uvicorn.Config(application(finder, hosts=list(LOOPBACK)), "127.0.0.1", 0, log_level="error")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_the_page_in_a_browser(served: str, browser: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"{served}/?q=picture")
    assert browser.title == "clipkit search"  # no caption ran as a script
    assert len(browser.find_elements("tag name", "figure")) == 12
    assert all(image.get_property("naturalWidth") > 0 for image in browser.find_elements("tag name", "img"))
    box = browser.find_element("name", "q")
    box.clear()
    box.send_keys("another of 5")
    browser.find_element("css selector", "option[value=texts]").click()
    browser.find_element("tag name", "button").click()
    WebDriverWait(browser, 20).until(lambda b: "of=texts" in b.current_url)
    assert "another of 5" in browser.find_element("tag name", "figcaption").text
    problems = [line for line in browser.get_log("browser") if "favicon" not in line["message"]]
    assert json.dumps(problems) == "[]"
