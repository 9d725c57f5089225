"""A remote file arrives whole or a typed error says why, whatever the server does."""

import io
import json
import sys
import time

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from clipkit.data.fetch import Policy, download, fetch_small
from clipkit.data.tar import ShardError
from clipkit.data.transport import Refused, check_redirect, open_remote, privacy, within

POLICY = Policy(tries=4, timeout=1.0, deadline=20.0, pause=0.01)
BODY = bytes(range(256)) * 900


class Kept(io.BytesIO):
    def close(self):
        self.content = self.getvalue()
        super().close()


def fetched(url, policy=POLICY):
    files = []

    def begin(version):
        files.append(Kept())
        return files[-1]

    version = download(url, begin, policy)
    return files[-1].content, version


@pytest.mark.parametrize(
    "script", [[], ["503", "503"], ["429"], ["half"], ["hang"], ["stall"], ["long"], ["503", "half", "hang"]]
)
def test_what_passes_is_tried_again(web, script):
    web.files["/0.tar"], web.script["/0.tar"] = BODY, list(script)
    content, version = fetched(f"{web.url}/0.tar")
    assert content == BODY
    assert version.size == len(BODY)
    assert version.etag.startswith('"')
    assert web.hits["/0.tar"] == len(script) + 1


@pytest.mark.parametrize(
    ("status", "says"), [("403", "answered 403.*rights"), ("404", "answered 404.*check the address")]
)
def test_what_stays_is_an_error_at_once(web, status, says):
    web.script["/0.tar"] = [status] * 9
    with pytest.raises(ShardError, match=says) as error:
        fetched(f"{web.url}/0.tar")
    assert error.value.shard == f"{web.url}/0.tar"
    assert web.hits["/0.tar"] == 1


@pytest.mark.parametrize("word", ["503", "stall", "half", "hang", "long"])
def test_a_server_that_never_recovers_is_given_up(web, word):
    web.files["/0.tar"], web.script["/0.tar"] = BODY, [word] * 99
    with pytest.raises(ShardError, match=r"tries\); check the server"):
        fetched(f"{web.url}/0.tar", Policy(tries=3, timeout=0.2, deadline=1.0, pause=0.01))


def test_the_deadline_ends_what_tries_do_not(web):
    web.script["/0.tar"] = ["503"] * 10_000
    with pytest.raises(ShardError):
        fetched(f"{web.url}/0.tar", Policy(tries=10_000, timeout=0.2, deadline=0.5, pause=0.01))


def test_nobody_listens():
    with pytest.raises(ShardError, match="refused"):
        fetched("http://127.0.0.1:9/0.tar", Policy(tries=2, timeout=0.2, deadline=1.0, pause=0.01))


def test_redirects_are_followed_to_equals_only(web):
    web.files["/b.tar"] = BODY
    web.script["/a.tar"] = [
        f"to:{web.url}/b.tar",
        "to:/b.tar",
        "to:file:///etc/passwd",
        "to:http://169.254.169.254/x",
        "to:ftp://h/x",
    ]
    assert fetched(f"{web.url}/a.tar")[0] == BODY
    assert fetched(f"{web.url}/a.tar")[0] == BODY
    for says in ("to a file address", "169.254.169.254, an address inside", "to a ftp address"):
        with pytest.raises(ShardError, match=f"{says}.*not followed"):
            fetched(f"{web.url}/a.tar")
    assert web.hits["/a.tar"] == 5


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("https://1.1.1.1/a", "http://1.1.1.1/a"),
        ("https://1.1.1.1/a", "https://127.0.0.1/a"),
        ("https://1.1.1.1/a", "https://[::1]/a"),
        ("https://1.1.1.1/a", "https://[::ffff:127.0.0.1]/a"),
        ("https://1.1.1.1/a", "https://0.0.0.0/a"),
        ("https://1.1.1.1/a", "https://localhost/a"),
        ("https://1.1.1.1/a", "https://10.0.0.1/a"),
        ("https://1.1.1.1/a", "https://2130706433/a"),
        ("http://10.0.0.1/a", "http://127.0.0.1/a"),
        ("http://127.0.0.1/a", "http://169.254.169.254/latest/meta-data"),
        ("https://1.1.1.1/a", "file:///etc/passwd"),
        ("https://1.1.1.1/a", "data:text/plain,x"),
    ],
)
def test_redirects_that_lead_inside_or_away_from_https(before, after):
    with pytest.raises(Refused):
        check_redirect(before, after)


def test_redirects_between_public_hosts():
    check_redirect("https://1.1.1.1/a", "https://8.8.8.8/b")
    check_redirect("http://1.1.1.1/a", "https://8.8.8.8/b")
    check_redirect("http://127.0.0.1/a", "http://10.0.0.1/b")
    assert [privacy(host) for host in ("8.8.8.8", "192.168.0.1", "127.0.0.1", "fe80::1")] == [0, 1, 2, 3]


def test_a_password_is_sent_to_its_host_alone(web):
    web.files["/b.tar"], web.script["/a.tar"] = BODY, ["to:/b.tar"]
    address = web.url.replace("http://", "http://me:p%40ss@")
    assert fetched(f"{address}/a.tar")[0] == BODY
    assert web.headers[0]["Authorization"] == "Basic bWU6cEBzcw=="
    assert "Authorization" not in web.headers[1]


def test_no_secret_in_any_message(web, caplog, capfd):
    secrets = ("canary1", "canary2", "canary3")
    web.files["/0.tar"] = BODY
    query = "X-Amz-Signature=canary2&token=canary3"
    address = web.url.replace("http://", "http://me:canary1@")
    said = ""
    scripts = [
        ["503"] * 9,
        ["404"],
        ["half"] * 9,
        ["stall"] * 9,
        [f"to:file:///x?{query}"],
        [f"to:gopher://me:canary1@h/?{query}"],
    ]
    for script in scripts:
        web.script["/0.tar"] = script
        with pytest.raises(ShardError) as error:
            fetched(f"{address}/0.tar?{query}", Policy(tries=2, timeout=0.1, deadline=1.0, pause=0.01))
        said += str(error.value) + error.value.shard
    said += caplog.text + "".join(capfd.readouterr())
    assert "try 2 of 2 follows" in said
    assert not [secret for secret in secrets if secret in said]


def test_small_files(web):
    web.files["/a.json"] = b"{}"
    assert fetch_small(f"{web.url}/a.json", 10, POLICY) == b"{}"
    assert fetch_small(f"{web.url}/none.json", 10, POLICY) is None
    web.script["/a.json"] = ["403"]  # what S3 answers for a file that is not there to whoever may not list
    assert fetch_small(f"{web.url}/a.json", 10, POLICY) is None
    web.files["/b.json"] = b" " * 11
    with pytest.raises(ShardError, match="larger than 10 bytes"):
        fetch_small(f"{web.url}/b.json", 10, POLICY)


class Bucket(LocalFileSystem):
    """Stands for s3: files of a folder, an etag, and now and then a failure."""

    protocol = "s3"
    root, fails, made = "", [], 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        type(self).made += 1

    @classmethod
    def _strip_protocol(cls, path):
        return cls.root + "/" + path.removeprefix("s3://") if path.startswith("s3://") else path

    def info(self, path, **kwargs):
        if type(self).fails:
            raise type(self).fails.pop(0)
        return super().info(self._strip_protocol(path)) | {"ETag": '"one"'}

    def _open(self, path, mode="rb", **kwargs):
        return super()._open(path, mode, **{name: value for name, value in kwargs.items() if name != "cache_type"})


@pytest.fixture
def bucket(tmp_path):
    Bucket.root, Bucket.fails = str(tmp_path), []
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.tar").write_bytes(BODY)
    fsspec.register_implementation("s3", Bucket, clobber=True)
    yield tmp_path / "b"
    sys.modules["fsspec.registry"]._registry.pop("s3")


def test_object_stores_through_fsspec(bucket):
    Bucket.fails = [TimeoutError("slow"), OSError("reset")]
    made = Bucket.made
    assert fetched("s3://b/0.tar") == (BODY, (len(BODY), '"one"'))
    assert Bucket.made == made + 3  # a fresh one for each try: none is inherited by a fork
    with pytest.raises(ShardError, match="no such file"):
        fetched("s3://b/1.tar")
    Bucket.fails = [PermissionError("Forbidden https://b/0.tar?X-Amz-Signature=canary")]
    with pytest.raises(ShardError, match="access is denied") as error:
        fetched("s3://b/0.tar")
    assert "canary" not in str(error.value)


def test_a_missing_package_is_named():
    with pytest.raises(ValueError, match=r"gcsfs; pip install 'clipkit-train\[remote\]'"):
        fetched("gs://bucket/0.tar")


def test_pipes(tmp_path):
    (tmp_path / "0.tar").write_bytes(BODY)
    assert fetched(f"pipe:cat {tmp_path}/0.tar")[0] == BODY
    marker = tmp_path / "marker"
    content, _ = fetched(f"pipe:echo x ; touch {marker}")  # no shell: words, not commands
    assert content == f"x ; touch {marker}\n".encode()
    assert not marker.exists()
    with pytest.raises(ShardError, match="cat ended with code 1"):
        fetched(f"pipe:cat {tmp_path}/none")
    with pytest.raises(ShardError, match="nonesuch cannot be started"):
        fetched("pipe:nonesuch x")
    with pytest.raises(ShardError, match="no answer within"):
        fetched("pipe:sleep 100", Policy(tries=1, timeout=0.2, deadline=1.0))


def test_a_call_that_hangs_is_left():
    with pytest.raises(TimeoutError):
        within(0.05, lambda: time.sleep(1))
    assert within(5, lambda: json.loads("3")) == 3
    with pytest.raises(KeyError):
        within(5, lambda: {}["x"])
    assert open_remote("pipe:true", 1).read(1) == b""
