"""Hostile shards: pickled members, programs in their names, archives that reach out of their folder or fill the machine."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import webdataset

from clipkit.data.index import build_index, read_sidecar, sidecar_path
from clipkit.data.source import expand_shards
from clipkit.data.stream import read_stream
from clipkit.data.vectors import vector
from tests.security.lab import PICKLE_NAMES, Exploit, Lab, allocated, environment, fires, raises, seconds

EVERY_VERB = ("fit", "index", "check", "preview", "pack", "evaluate", "embed")


def good_members(world_shard: Path, count: int = 16) -> dict[str, bytes]:
    """Members of the world's shard."""
    with tarfile.open(world_shard) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar.getmembers()[: 2 * count]}


def iterate(shard: object) -> None:
    """Read a shard as webdataset's manual says."""
    for _ in webdataset.WebDataset(str(shard), shardshuffle=False, handler=webdataset.ignore_and_continue).decode(
        "pilrgb"
    ):
        pass


def grouped(shard: object) -> None:
    """Read a shard by webdataset's stages, undecoded."""
    source = webdataset.SimpleShardList([str(shard)])
    for _ in webdataset.DataPipeline(source, webdataset.tarfile_to_samples()):
        pass


def every_verb(lab: Lab, shard: Path) -> None:
    """Let each verb that reads shards read this one; what it answers is the caller's to ask."""
    one = {"squares": {"shards": str(shard)}}
    config = lab.config(data={"train": one, "batch_size": 8, "workers": 0})
    lab.passed("fit", config, f"run={lab.folder / 'run'}")
    lab.passed("data", "index", shard)
    lab.passed("data", "check", shard, "--model", lab.world.model)
    lab.passed("data", "preview", shard, "--out", lab.folder / "page.html")
    lab.refused("data", "pack", shard, "--out", lab.folder / "packed")
    lab.passed("evaluate", lab.world.model, "--data", lab.shard_set(shard), "--task", "retrieval")
    lab.passed("embed", lab.world.model, shard, "--out", lab.folder / "embedded", "--thumbnail", "0")


def pickles(lab: Lab) -> Path:
    """A shard of good samples, each with members that would be unpickled."""
    held = pickle.dumps(lab.payload())
    members = {}
    for name, data in good_members(lab.world.shard).items():
        members[name] = data
        if name.endswith(".png"):
            key = name.removesuffix("png")
            members |= {key + kind: gzip.compress(held) if kind.endswith("gz") else held for kind in PICKLE_NAMES}
    return lab.tar("pickles.tar", members)


def pickled_field(lab: Lab) -> None:
    """A configuration that names the pickled member as a caption, or as a teacher's embedding."""
    shard = pickles(lab)
    for place in ("pyd", "pickle", "pth"):
        fields = {"image": "png", "text": place}
        data = {"train": {"x": {"shards": str(shard), "fields": fields}}, "batch_size": 8, "workers": 0}
        lab.refused("fit", lab.config(data=data), f"run={lab.folder / 'run'}")


def object_array(lab: Lab) -> bytes:
    """A ``.npy`` of pickled objects."""
    file = io.BytesIO()
    np.save(file, np.array([lab.payload()], object), allow_pickle=True)
    return file.getvalue()


def pickled_sidecar(lab: Lab) -> Path:
    """A sidecar whose arrays are pickled."""
    shard = lab.tar("objects.tar", good_members(lab.world.shard, 2))
    np.savez(sidecar_path(shard), v=np.array([lab.payload()], object))
    return shard


def read_objects(lab: Lab) -> None:
    """Embeddings of a teacher, and the index beside a shard."""
    from clipkit.data.images import BadSample
    from clipkit.data.source import Place

    raises(BadSample, lambda: vector({"npy": object_array(lab)}, (Place("npy"),), 0.0, 1))
    shard = pickled_sidecar(lab)
    raises(ValueError, lambda: read_sidecar(sidecar_path(shard)))
    lab.passed("data", "index", shard)


def pipes(lab: Lab) -> list[str]:
    """Programs as names of shards: bare, and dressed as those that are read as the URL which they copy."""
    touch = f"touch {lab.marker}"
    return [
        f"pipe:{touch}",
        f"pipe:{touch}; cat {lab.world.shard}",
        f"pipe:curl -s https://127.0.0.1:9/0.tar; {touch} #.tar",
        f"pipe:curl -s https://127.0.0.1:9/0.tar -o {lab.marker}",
        f"pipe:curl -s -K {lab.marker} https://127.0.0.1:9/0.tar",
        f"pipe:aws s3 cp s3://b/0.tar - | {touch}",
        f"pipe:gsutil cat gs://b/$({touch}).tar",
        f"PIPE:{touch}",
        f" pipe:{touch}",
        f"{{pipe:{touch},x}}.tar",
    ]


def pipes_here(lab: Lab) -> None:
    """On the command line, in a configuration, in a list of shards, in a suite; never with a shell."""
    for pipe in pipes(lab):
        raises(ValueError, lambda pipe=pipe: expand_shards(pipe))
    pipe = pipes(lab)[0]
    lab.refused("fit", lab.world.config, f'data.train.squares.shards="{pipe}"', f"run={lab.folder / 'a'}")
    listed = {"train": {"x": {"shards": [str(lab.world.shard), pipe]}}, "batch_size": 8, "workers": 0}
    lab.refused("fit", lab.config(data=listed), f"run={lab.folder / 'b'}", words="--allow-pipe")
    lab.refused("fit", lab.config(data=listed | {"allow_pipe": True}), f"run={lab.folder / 'c'}")
    lab.refused("data", "index", pipe, words="programs are not run")
    lab.refused("data", "check", pipe)
    lab.refused("data", "preview", pipe, "--out", lab.folder / "x.html")
    for here in (pipe, f"{pipe} #"):  # what is added to a set's address would be another argument
        lab.refused("embed", lab.world.model, here, "--out", lab.folder / "x", words="programs are not run")
        lab.refused("evaluate", lab.world.model, "--data", here, words="programs are not run")
    suite = lab.folder / "suite.yaml"
    suite.write_text(
        f"description: x\nsource: x\nsets:\n  a: {{data: '{pipe} #', task: retrieval, metric: mean_recall@1}}\n"
    )
    lab.refused("evaluate", lab.world.model, "--suite", suite)
    # allowed by the user, it is a program with arguments: what a shell would do with them is not done
    bare = f"pipe:echo $({pipe.removeprefix('pipe:')}) ; {pipe.removeprefix('pipe:')}"
    data = {"train": {"x": {"shards": bare}}, "batch_size": 8, "workers": 0}
    with mock.patch("clipkit.data.fetch.time.sleep"):  # it is asked several times, with pauses
        lab.refused("fit", lab.config(data=data), f"run={lab.folder / 'd'}", "--allow-pipe")


def rewritten(lab: Lab, work: object) -> None:
    """``GOPEN_REWRITE`` turns a plain path into a program."""
    with environment(GOPEN_REWRITE=f"{lab.world.folder}=pipe:touch {lab.marker} #"):
        work()


def evil_paths(lab: Lab) -> Path:
    """Members that lead out of the folder into which they are unpacked."""
    members = {}
    for name, data in good_members(lab.world.shard).items():
        members[f"../{name}"] = data
        members[f"{lab.folder}/absolute/{name}"] = data
    return lab.tar("inside/paths.tar", dict(sorted(members.items())))


def unpack_paths(lab: Lab) -> None:
    """Python's own extraction, as it was by default up to 3.13."""
    (lab.folder / "inside" / "out").mkdir(parents=True)
    with tarfile.open(evil_paths(lab)) as tar:
        tar.extractall(lab.folder / "inside" / "out", filter="fully_trusted")
    lab.harmed((lab.folder / "inside" / "00000.png").exists() and (lab.folder / "absolute").exists())


def paths_here(lab: Lab) -> None:
    """Keys stay names: nothing appears but where the user said."""
    import shutil

    shutil.rmtree(lab.folder / "inside")
    shutil.rmtree(lab.folder / "absolute")
    (lab.folder / "inside").mkdir()
    every_verb(lab, evil_paths(lab))
    said = {"inside", "run", "page.html", "set", "embedded", "evil.yaml", "report.html"}
    out = {path.name for path in lab.folder.iterdir()} - said
    assert not out, out
    lab.harmed({path.name for path in lab.folder.rglob("*")} & good_members(lab.world.shard).keys())


def special(lab: Lab, kind: bytes) -> Path:
    """A shard whose first member is a link or a device."""
    place = lab.folder / f"special{kind.decode()}.tar"
    with tarfile.open(place, "w") as tar:
        info = tarfile.TarInfo("link.png")
        info.type, info.linkname = kind, str(lab.folder / "secret.png")
        tar.addfile(info)
        for name, data in good_members(lab.world.shard, 8).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return place


def unpack_links(lab: Lab) -> None:
    """A link out of the folder is made, a fifo too: the next reader waits for ever."""
    with tarfile.open(special(lab, tarfile.SYMTYPE)) as tar:
        tar.extractall(lab.folder / "out", filter="fully_trusted")
    linked = os.readlink(lab.folder / "out" / "link.png") == str(lab.folder / "secret.png")
    with tarfile.open(special(lab, tarfile.FIFOTYPE)) as tar:
        tar.extractall(lab.folder / "out2", filter="fully_trusted")
    lab.harmed(linked and (lab.folder / "out2" / "link.png").is_fifo())


def links_here(lab: Lab) -> None:
    """Links are refused by name, devices passed over: they hold no data."""
    (lab.folder / "secret.png").write_bytes(b"secret")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        lab.refused("data", "index", special(lab, kind), words="is a link")
    for kind in (tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE):
        assert len(build_index(special(lab, kind))) == 8


def giant(lab: Lab) -> Path:
    """A picture of 256 MiB, most of it a hole in the file."""
    place = lab.tar("giant.tar", good_members(lab.world.shard, 8))
    with place.open("r+b") as file:
        head = tarfile.TarInfo("giant.png")
        head.size = 256 << 20
        file.seek(16 * 1024)  # behind the good samples: two blocks each
        file.write(head.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(file.tell() + head.size + 4096)
    return place


def giants_here(lab: Lab) -> None:
    """It is refused unread; a member that claims a terabyte makes no shard."""
    shard = giant(lab)
    lab.harmed(lab.grows(50, lambda: lab.passed("data", "check", shard, "--model", lab.world.model, "--budget", "0.5")))
    assert "too_large" in lab.said, lab.said
    for streamed in read_stream(str(shard), frozenset({"png", "txt"}), 64 << 20):
        assert streamed.members.keys() <= {"png", "txt"}
    claimed = lab.folder / "claimed.tar"
    head = tarfile.TarInfo("a.png")
    head.size = 1 << 40
    claimed.write_bytes(head.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    lab.refused("data", "index", claimed, words="runs past the end")
    stream = list(read_stream(str(claimed), frozenset({"png"}), 64 << 20))
    assert "" in stream[-1].members


def many_members(lab: Lab) -> Path:
    """Empty members, half a kilobyte each on disk."""
    place = lab.folder / "many.tar"
    with place.open("wb") as file:
        for number in range(10_000):
            file.write(tarfile.TarInfo(f"{number:07d}.txt").tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(1024))
    return place


def all_headers(path: Path) -> list[tarfile.TarInfo]:
    """What tarfile keeps of a tar."""
    with tarfile.open(path) as tar:
        return tar.getmembers()


def many_here(lab: Lab) -> None:
    """An index takes at most twice the bytes of its shard, and no longer than its length asks for."""
    shard = many_members(lab)
    lab.harmed(allocated(lambda: build_index(shard)) > 2 * shard.stat().st_size / 1e6)


def pax_bomb(lab: Lab) -> Path:
    """A PAX header of a mebibyte in records as short as can be."""
    record = b"5 a=\n"
    data = record * ((1 << 20) // len(record))
    place = lab.folder / "pax.tar"
    head = tarfile.TarInfo("pax")
    head.type, head.size = tarfile.XHDTYPE, len(data)
    good = lab.tar("one.tar", good_members(lab.world.shard, 1)).read_bytes()
    place.write_bytes(head.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512) + good)
    return place


def slow_pax(lab: Lab) -> None:
    """Read by cutting each record off the front, as one would: the time grows with the square."""
    data = pax_bomb(lab).read_bytes()[512:][: 1 << 20]
    started, cut = time.monotonic(), 0
    while data.strip(b"\0") and time.monotonic() - started < 1:
        data, cut = data[5:], cut + 1
    lab.harmed(cut < 100_000)


def gzip_bomb(lab: Lab) -> Path:
    """A tar of one picture of 256 MiB of zeros in 0.3 MB."""
    place = lab.folder / "bomb.tar"
    head = tarfile.TarInfo("a.png")
    head.size = 256 << 20
    with gzip.open(place, "wb", compresslevel=1) as file:
        file.write(head.tobuf(tarfile.USTAR_FORMAT))
        for _ in range(256):
            file.write(bytes(1 << 20))
        file.write(bytes(1024))
    return place


def gzip_here(lab: Lab) -> None:
    """Refused where it is indexed; where it is streamed, the member is passed over unheld."""
    shard = gzip_bomb(lab)
    lab.refused("data", "index", shard, words="compressed (gzip)")
    found = []
    work = lambda: found.extend(read_stream(str(shard), frozenset({"png"}), 64 << 20))  # noqa: E731
    lab.harmed(lab.grows(50, work))
    assert [str(sample.members["png"].cause) for sample in found] == ["too_large"]


def false_sidecar(lab: Lab, shape: str, *, packed: int | None = None) -> Path:
    """A sidecar of some bytes whose first array claims a shape, or is packed from so many zeros."""
    import zipfile

    shard = lab.tar("npz.tar", good_members(lab.world.shard, 2))
    head = np.lib.format
    file = io.BytesIO()
    head.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": eval_shape(shape)})
    kind = zipfile.ZIP_STORED if packed is None else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(sidecar_path(shard), "w", kind) as archive:
        archive.writestr("v.npy", file.getvalue() + bytes(packed or 64))
    return shard


def eval_shape(text: str) -> tuple[int, ...]:
    """``1 << 44`` or ``8`` as a shape."""
    return (1 << int(text.partition("<<")[2]),) if "<<" in text else (int(text),)


def load_claimed(lab: Lab) -> None:
    """numpy takes what the header claims."""
    shard = false_sidecar(lab, "1 << 44")
    with np.load(sidecar_path(shard)) as archive:
        try:
            archive["v"]
        except MemoryError:
            lab.harmed()


def claims_here(lab: Lab) -> None:
    """A sidecar of a stranger is damaged, by its own word, and made again."""
    for shape, packed in (("1 << 44", None), (f"{32 << 20}", 256 << 20)):
        shard = false_sidecar(lab, shape, packed=packed)
        lab.harmed(lab.grows(50, lambda shard=shard: raises(ValueError, lambda: read_sidecar(sidecar_path(shard)))))
        lab.passed("data", "index", shard)


def deep(lab: Lab) -> Path:
    """A shard whose JSON is nested a hundred thousand deep."""
    nested = b'{"caption": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    members = {}
    for name, data in good_members(lab.world.shard).items():
        members[name] = data
        if name.endswith(".png"):
            members[name.replace("png", "json")] = nested
    return lab.tar("deep.tar", members)


def deep_json(lab: Lab) -> None:
    """Python's JSON reader ends in a RecursionError, which is no ValueError."""
    import json

    try:
        json.loads("[" * 100_000)
    except RecursionError:
        lab.harmed()


def deep_here(lab: Lab) -> None:
    """Such members are bad samples; such lists beside shards and records in folders are told in a few words."""
    shard = deep(lab)
    fields = {"train": {"x": {"shards": str(shard), "fields": {"image": "png", "text": "json.caption"}}}}
    lab.refused("fit", lab.config(data=fields | {"batch_size": 8, "workers": 0}), f"run={lab.folder / 'r'}")
    lab.passed("data", "preview", shard, "--out", lab.folder / "page.html")
    nested = "[" * 100_000
    (lab.folder / "index.json").write_text(nested)
    lab.passed("data", "index", shard)
    config = lab.folder / "deep.json"
    config.write_text(nested)
    lab.refused("evaluate", config, "--data", lab.shard_set(lab.world.shard), words="nested too deeply")
    (lab.folder / "m").mkdir()
    (lab.folder / "m" / "open_clip_config.json").write_text(nested)
    lab.refused("export", lab.folder / "m", "--out", lab.folder / "o", words="nested too deeply")
    (lab.folder / "c").mkdir()
    for name in ("manifest.json", "state.json"):
        (lab.folder / "c" / name).write_text(nested)
    lab.refused("export", lab.folder / "c", "--out", lab.folder / "o")
    lab.refused("search", lab.folder / "c", "words", words="nested too deeply")
    captions = lab.folder / "captions.json"
    captions.write_text(nested)
    lab.refused("evaluate", lab.world.model, "--data", captions, words="nested too deeply")


EXPLOITS = (
    Exploit(
        "pickled members, every verb",
        lambda lab: fires(lambda: iterate(pickles(lab))),
        lambda lab: every_verb(lab, pickles(lab)),
    ),
    Exploit("pickled members as fields", lambda lab: fires(lambda: iterate(pickles(lab))), pickled_field),
    Exploit(
        "pickled arrays",
        lambda lab: fires(lambda: np.load(io.BytesIO(object_array(lab)), allow_pickle=True)),
        read_objects,
    ),
    Exploit("pipe: shards", lambda lab: fires(lambda: iterate(pipes(lab)[0])), pipes_here),
    Exploit(
        "GOPEN_REWRITE",
        lambda lab: rewritten(lab, lambda: fires(lambda: grouped(lab.world.shard))),
        lambda lab: rewritten(lab, lambda: every_verb(lab, lab.world.shard)),
    ),
    Exploit("paths out of the folder", unpack_paths, paths_here),
    Exploit("links and devices", unpack_links, links_here),
    Exploit("giant members", lambda lab: lab.harmed(lab.grows(200, lambda: grouped(giant(lab)))), giants_here),
    Exploit(
        "many members",
        lambda lab: lab.harmed(allocated(lambda: all_headers(many_members(lab))) > 3),
        many_here,
    ),
    Exploit("PAX records", slow_pax, lambda lab: lab.harmed(seconds(lambda: build_index(pax_bomb(lab))) > 10)),
    Exploit(
        "gzip bomb",
        lambda lab: lab.harmed(lab.grows(200, lambda: gzip.decompress(gzip_bomb(lab).read_bytes()))),
        gzip_here,
    ),
    Exploit("false sidecars", load_claimed, claims_here),
    Exploit("deep JSON", deep_json, deep_here),
)
