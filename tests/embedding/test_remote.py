"""Embeddings of shards that lie on a server or in an object store: the same rows, fetched once, gone on with."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from clipkit.data.index import default_cache
from clipkit.embedding import embed as module
from clipkit.embedding.embed import embed
from clipkit.encoder import Encoder

from ..data.web import Web
from .test_embed import rows


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def web(tars: Path) -> Iterator[Any]:
    server = Web()  # type: ignore[no-untyped-call]
    server.files |= {f"/x/{path.name}": path.read_bytes() for path in tars.glob("*.tar")}
    yield server
    server.close()  # type: ignore[no-untyped-call]


def test_shards_on_a_server(
    encoder: Encoder, tars: Path, web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, out = embed(encoder, tars, tmp_path / "here"), tmp_path / "out"
    url = f"{web.url}/x/{{0..2}}.tar?token=secret"
    plain, done = module._embed_part, []

    def twice(encoder: Encoder, part: Any, *rest: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(part.name)
        return plain(encoder, part, *rest)

    monkeypatch.setattr(module, "_embed_part", twice)
    with pytest.raises(KeyboardInterrupt):
        embed(encoder, url, out)
    done.clear()
    made = embed(encoder, url, out)
    assert len(done) == 1
    assert (made["images"], made["unreadable"], made["complete"]) == (here["images"], here["unreadable"], True)
    for kind in ("img_emb", "text_emb"):
        assert np.array_equal(rows(out, kind), rows(tmp_path / "here", kind))
    assert {path: web.hits[path] for path in web.files} == {f"/x/{n}.tar": 1 for n in range(3)}
    places = pq.read_table(out / "metadata")["image_path"].to_pylist()
    assert places[0] == f"{web.url}/x/0.tar?***"
    assert not any("secret" in path.read_text() for path in out.rglob("*.json"))
    assert not list((default_cache() / "embedding").iterdir())


def test_a_shard_that_is_not_there_is_named(encoder: Encoder, web: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"/x/3.tar: cannot be fetched, the server answered 404"):
        embed(encoder, f"{web.url}/x/{{2..3}}.tar", tmp_path / "out")
    with pytest.raises(ValueError, match=r"ftp:// is not read"):
        embed(encoder, "ftp://host/x/0.tar", tmp_path / "out")


class Bucket(LocalFileSystem):
    """Stands for s3: files of a folder."""

    protocol = "s3"
    root: ClassVar[str] = ""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        path = str(path)
        return f"{cls.root}/{path.removeprefix('s3://bucket/')}" if path.startswith("s3://") else path

    def info(self, path: Any, **named: Any) -> Any:
        return super().info(self._strip_protocol(path)) | {"ETag": '"one"'}

    def _open(self, path: Any, mode: str = "rb", **named: Any) -> Any:
        return super()._open(path, mode, **{name: value for name, value in named.items() if name != "cache_type"})


def test_shards_in_an_object_store(
    encoder: Encoder, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bucket, "root", str(tars))
    fsspec.register_implementation("s3", Bucket, clobber=True)
    try:
        made = embed(encoder, "s3://bucket/{0..2}.tar", tmp_path / "out")
    finally:
        sys.modules["fsspec.registry"]._registry.pop("s3")
    here = embed(encoder, tars, tmp_path / "here")
    assert made["captions"] == here["captions"]
    assert np.array_equal(rows(tmp_path / "out", "img_emb"), rows(tmp_path / "here", "img_emb"))
