"""Damaged and invented input to every reader of a stranger's files: a typed error or a result, never anything else.

The short form runs always; the long one is marked slow. What it found stands below as tests of their own.
"""

import contextlib
import io
import json
import os
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from clipkit.checkpoint import MANIFEST, verify
from clipkit.config import ConfigError, load_config
from clipkit.config.json_text import parse_json
from clipkit.data.images import BadSample, decode, image_size
from clipkit.data.index import build_index, read_sidecar, sidecar_path, write_sidecar
from clipkit.data.listing import NAME, read_lists
from clipkit.data.source import expand_shards
from clipkit.data.stream import read_stream
from clipkit.data.tar import ShardError, _pax, members
from clipkit.data.urls import read_pipe, shown
from clipkit.embedding.manifest import read_manifest, read_record
from tests.conftest import write_shard

QUIET = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
SHORT = settings(max_examples=60, deadline=None, suppress_health_check=QUIET, database=None, derandomize=True)
LONG = settings(max_examples=5000, deadline=None, suppress_health_check=QUIET, database=None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def damaged(draw, whole):
    """Good bytes with some overwritten, cut out, put in or cut off."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        change = draw(st.sampled_from(("flip", "cut", "put", "end", "number")))
        if change == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif change == "cut":
            del data[at : at + draw(st.integers(1, 600))]
        elif change == "put":
            data[at:at] = draw(st.binary(max_size=40))
        elif change == "end":
            del data[at:]
        else:
            data[at : at + 4] = draw(st.sampled_from((b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\0", b"9999")))
    return bytes(data)


def sealed(data):
    """A tar with the checksums of its headers made right again, so that what is behind them is reached."""
    data = bytearray(data)
    for at in range(0, len(data) - 511, 512):
        if data[at + 257 : at + 262] == b"ustar":
            total = sum(data[at : at + 512]) - sum(data[at + 148 : at + 156]) + 256
            data[at + 148 : at + 156] = b"%06o\0 " % total
    return bytes(data)


def tars():
    """Small tars in three formats, with long names and PAX records."""
    found = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
            for number in range(3):
                name = "long/" * (30 if kind != tarfile.USTAR_FORMAT else 1) + f"ü{number}.txt"
                info = tarfile.TarInfo(name)
                info.size = 5
                tar.addfile(info, io.BytesIO(b"words"))
        found.append(file.getvalue()[: 512 * 14])
    return found


def pictures():
    """A small picture in each format, some of them odd."""
    found = []
    picture = Image.radial_gradient("L").resize((24, 16))
    for kind, mode, more in (
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "CMYK", {}),
        ("PNG", "RGB", {}),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "I;16", {}),
        ("PNG", "LA", {}),
        ("WEBP", "RGBA", {}),
        ("GIF", "P", {"save_all": True, "append_images": [picture.convert("P").rotate(90)]}),
        ("BMP", "RGB", {}),
    ):
        file = io.BytesIO()
        picture.convert(mode).save(file, kind, **more)
        found.append(file.getvalue())
    return found


def try_tar(data, place):
    place.write_bytes(data)
    fd = os.open(place, os.O_RDONLY)
    for read in (lambda: list(members(fd, str(place))), lambda: build_index(place)):
        with contextlib.suppress(ShardError):
            read()
    os.close(fd)
    for sample in read_stream(str(place), frozenset({"txt"}), 1 << 20):
        assert len(b"".join(value for value in sample.members.values() if isinstance(value, bytes))) <= len(data)


def try_picture(data, place):
    for read in (decode, image_size):
        with contextlib.suppress(BadSample):
            read(data)


def try_sidecar(data, place):
    place.write_bytes(data)
    try:
        index = read_sidecar(place)
    except ValueError:
        return
    assert all((offset + length <= index.size).all() for offset, length in index.fields.values())


def try_config(data, place):
    place.write_bytes(data)
    try:
        load_config(place)
    except ConfigError as error:
        str(error)


def try_manifests(data, place):
    folder = place.parent
    for name in (MANIFEST, NAME, "parts/00000.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    verify(folder)
    read_lists(str(folder), None)
    read_record(folder, 0)
    with contextlib.suppress(ValueError):
        read_manifest(folder)


def try_texts(data, place):
    text = data.decode(errors="replace")
    shown(text)
    read_pipe(f"pipe:{text}")
    with contextlib.suppress(ValueError):
        expand_shards(text)


def sidecars(folder):
    shard = write_shard(folder / "a.tar", 3)
    write_sidecar(build_index(shard), sidecar_path(shard))
    return [sidecar_path(shard).read_bytes()]


CONFIG = b"""
model: ViT-B-32
data: {train: {a: {shards: "x/{00..03}.tar", weight: 1.0}}, batch_size: 8Ki}
losses: {a: &a {kind: infonce, weight: 1}, b: {<<: *a, kind: sigmoid}}
optim: {lr: 1e-3, betas: [0.9, 0.98], warmup: 5 steps}
trainer: {length: 1M samples, lightning: {max_time: "00:01:00:00"}}
run: ${model}
"""
MANIFESTS = [
    json.dumps({"version": 1, "files": {"state.pt": {"size": 1, "sha256": "x"}}}).encode(),
    json.dumps({"version": 2, "shards": [{"name": "a", "count": 1, "size": 2, "fingerprint": "x"}]}).encode(),
    json.dumps({"format": 1, "dim": 8, "dtype": "float16", "parts": 1, "model": "x", "weights": "y"}).encode(),
    json.dumps(
        {
            "name": "a",
            "state": "b",
            "images": 1,
            "captions": 1,
            "one_each": True,
            "cut": 0,
            "unreadable": [],
            "files": {},
        }
    ).encode(),
]
TEXTS = [
    b"pipe:aws s3 cp s3://b/{0..3}.tar -",
    b"https://user:pw@host/{000..999}.tar?X-Amz-Signature=abc&token=x",
    b"/data/{00..01}/*.tar",
]
READERS = {
    "tar": (tars, try_tar),
    "picture": (pictures, try_picture),
    "sidecar": (sidecars, try_sidecar),
    "config": (lambda: [CONFIG], try_config),
    "manifests": (lambda: MANIFESTS, try_manifests),
    "texts": (lambda: TEXTS, try_texts),
}


def fuzz(name, folder, how):
    make, attempt = READERS[name]
    whole = make(folder) if make is sidecars else make()

    @how
    @given(data=st.data())
    def run(data):
        made = data.draw(damaged(whole))
        if name == "tar" and data.draw(st.booleans()):
            made = sealed(made)
        if name == "manifests" and data.draw(st.booleans()):
            made = json.dumps(data.draw(JSON)).encode(errors="replace")
        attempt(made, folder / "fuzzed.yaml")

    run()


@pytest.mark.parametrize("name", READERS)
def test_a_typed_error_or_nothing(name, tmp_path):
    fuzz(name, tmp_path, SHORT)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", READERS)
def test_a_typed_error_or_nothing_for_long(name, tmp_path):
    fuzz(name, tmp_path, LONG)


def test_pax_records_are_read_in_one_pass():
    record = b"5 a=\n"
    assert _pax(record * 200_000 + bytes(100)) == {b"a": b""}
    assert _pax(b"9 a=b c\n\n") == {b"a": b"b c\n"}
    for bad in (b"5 a", b"99 a=b\n", b"-5 a=b\n", b"x a=b\n", b"5", b"0 a=\n", b"2 a=\n"):
        with pytest.raises(ValueError, match="PAX record|invalid literal"):
            _pax(bad)


def npz(path, header, body, kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("v.npy", b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + body)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<i8', 'fortran_order': False, 'shape': (17592186044416,), }\n",  # 128 TiB
        b"{'descr': '<i8', 'fortran_order': False, 'shape': (-1,), }\n",
        b"{'descr': '|S0', 'fortran_order': False, 'shape': (1099511627776,), }\n",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (), }\n",
        b"{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (8,), }\n",
        b"{'descr': '<i8', 'fortran_order': True, 'shape': (2, 4), }\n",
        b"__import__('os').system('true')\n",
        b"(" * 9000 + b"\n",
    ],
)
def test_a_sidecar_takes_no_more_than_it_holds(tmp_path, header):
    path = tmp_path / "a.tar.idx.npz"
    npz(path, header, bytes(64))
    with pytest.raises(ValueError, match="damaged"):
        read_sidecar(path)


def test_a_packed_sidecar_is_refused_unread(tmp_path):
    path = tmp_path / "a.tar.idx.npz"
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (4194304,), }\n"
    npz(path, header, bytes(32 << 20), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="in a file of"):
        read_sidecar(path)


def test_a_sidecar_that_numpy_packed_is_read_by_size(tmp_path):
    path = tmp_path / "a.tar.idx.npz"
    np.savez(path, v=np.arange(3))
    with pytest.raises(ValueError, match="damaged"):  # no such columns, but read
        read_sidecar(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, b"\xff", "", "nan nan", "9" * 5000])
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError, match="deeply|decode|Expecting|Extra data|digits"):
        parse_json(text)


def test_a_jpeg_of_many_scans_is_refused_by_their_number():
    file = io.BytesIO()
    Image.new("L", (64, 64), 128).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    size = data.index(b"\xff\xc2") + 5
    large = data[:size] + (5000).to_bytes(2, "big") * 2 + data[size + 4 :]
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(BadSample, match="scans"):
        decode(large[:-2] + scan * 50 + data[-2:])
    assert decode(data).pixels.shape == (3, 64, 64)


def test_a_png_that_says_less_than_it_holds_stays_small():
    rows = zlib.compress(bytes(50 << 20), 9)
    head = (4).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0"
    parts = [(b"IHDR", head), (b"IDAT", rows), (b"IEND", b"")]
    data = b"".join(len(d).to_bytes(4, "big") + k + d + zlib.crc32(k + d).to_bytes(4, "big") for k, d in parts)
    assert decode(b"\x89PNG\r\n\x1a\n" + data).pixels.shape == (3, 4, 4)


def test_damaged_rows_of_a_png_are_a_bad_sample():
    """They ended the process in torchvision's decoder."""
    whole = pictures()[3]
    start = whole.index(b"IDAT") + 4
    size = int.from_bytes(whole[start - 8 : start - 4], "big")
    rng = np.random.default_rng(0)
    bad = 0
    for _ in range(200):
        rows = bytearray(whole[start : start + size])
        rows[rng.integers(2, size)] ^= rng.integers(1, 256)
        sealed_rows = bytes(rows) + zlib.crc32(b"IDAT" + rows).to_bytes(4, "big")
        try:
            decode(whole[:start] + sealed_rows + whole[start + size + 4 :])
        except BadSample:
            bad += 1
    assert bad > 20
