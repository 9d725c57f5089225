"""What a shard's address is: which URLs are read, how they are shown without their secrets, and what a ``pipe:`` stands for."""

from __future__ import annotations

import hashlib
import posixpath
import re
import shlex
from urllib.parse import urlsplit, urlunsplit

SCHEMES = ("https", "http", "s3", "gs", "hf")
PIPE = "pipe:"
_SECRET = re.compile(  # parameters that a signature is made of: they change while the object stays the same
    r"x-(amz|goog)-.*|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id|.*(token|secret|password|key).*|s(ig|e|p|v|r|t|ks?\w*|kt|ip|pr)",
    re.IGNORECASE,
)
_MASKS = (
    (re.compile(r"([a-z][a-z0-9+.-]*://)[^/\s@'\"]+@", re.IGNORECASE), r"\1***@"),  # user:password@
    (
        re.compile(r"([a-z][a-z0-9+.-]*://[^\s?'\"]*)\?[^\s'\"]*[^\s'\",:;.)]", re.IGNORECASE),
        r"\1?***",
    ),  # ?X-Amz-Signature=...
    (re.compile(r"\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE), r"\1\2***"),
    (re.compile(r"\b(hf_[A-Za-z0-9]{8,}|(AKIA|ASIA)[A-Z0-9]{12,})"), "***"),
    (
        re.compile(r"([\w-]*(signature|token|secret|password|credential)[\w-]*[=:]\s?)[^\s&'\",)]+", re.IGNORECASE),
        r"\1***",
    ),
)
_FLAGS = {  # options that do not change what is read; any other may name a header, a profile or a file
    "curl": re.compile(
        r"-[sSfLN]+|--(silent|show-error|fail|location|no-buffer|retry(-delay|-max-time)?|connect-timeout|max-time)|\d+"
    ),
    "wget": re.compile(r"-q|-O-?|-qO-?|--quiet|-"),
    "aws": re.compile(r"s3|cp|-|--(quiet|no-progress|only-show-errors)"),
    "gsutil": re.compile(r"-q|cat"),
    "gcloud": re.compile(r"storage|cat|--quiet"),
}


def is_remote(path: str) -> bool:
    """Whether a shard is fetched to this machine before it is read."""
    return "://" in path or path.startswith(PIPE)


def shown(text: str) -> str:
    """A URL, or a message that holds some, without anything secret: user information, queries, tokens.

    >>> shown("GET https://me:pw@host/a.tar?X-Amz-Signature=1f: 403")
    'GET https://***@host/a.tar?***: 403'
    """
    for pattern, mask in _MASKS:
        text = pattern.sub(mask, text)
    return text


def check_url(url: str) -> None:
    """Whether a URL is one that is read.

    Raises:
        ValueError: If not; the message says what is.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ValueError(f"shards {shown(url)!r}: {parts.scheme}:// is not read; {known} and files are")
    if re.search(r"[\s\x00-\x1f\x7f\\#]", url):
        raise ValueError(f"shards {shown(url)!r}: spaces, # and the like cannot stand in a URL; write %20 for a space")
    if "***" in url:
        raise ValueError(f"shards {url!r}: its password or signature is not kept with a run; name the whole address")
    if not parts.netloc or parts.path.endswith("/") or "*" in url:
        cure = "name the shards one by one or by a brace range, such as https://host/{00000..00099}.tar"
        raise ValueError(f"shards {shown(url)!r}: names no file, and remote folders are not listed; {cure}")


def _identity(url: str) -> str:
    """The URL without what may change while the object stays the same: user information and signatures."""
    parts = urlsplit(url)
    kept = [pair for pair in parts.query.split("&") if pair and not _SECRET.fullmatch(pair.partition("=")[0])]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "&".join(kept), ""))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def shard_name(url: str) -> str:
    """What the shard is called in its folder's lists."""
    if url.startswith(PIPE):
        return url
    identity = urlsplit(_identity(url))
    return posixpath.basename(identity.path) + (f"?{identity.query}" if identity.query else "")


def local_names(url: str) -> tuple[str, str]:
    """Folder and file name under which a remote file is kept here: made of hashes, as the URL may come from a stranger."""
    identity = url if url.startswith(PIPE) else _identity(url)
    folder = "pipe" if url.startswith(PIPE) else posixpath.dirname(urlsplit(identity)._replace(query="").geturl())
    tail = re.sub(r"[^A-Za-z0-9._-]", "_", posixpath.basename(urlsplit(identity).path))[-80:].lstrip(".")
    return _hash(folder), f"{_hash(identity)}-{tail or 'shard'}"


def beside(url: str, name: str) -> str:
    """The URL of another file in the same folder; a query stays, as some signatures are a whole folder's."""
    parts = urlsplit(url)
    return parts._replace(path=posixpath.join(posixpath.dirname(parts.path), name)).geturl()


def pattern_of(urls: list[str]) -> str:
    """URLs that differ in a number as one brace range, others as the first of them.

    >>> pattern_of(["s3://b/00.tar", "s3://b/01.tar", "s3://b/12.tar"])
    's3://b/{00..12}.tar'
    """
    first, last = shown(urls[0]), shown(urls[-1])
    one, two = (re.match(r"(.*?)(\d+)([^\d/]*)$", url) for url in (first, last))
    if first != last and one and two and (one[1], one[3]) == (two[1], two[3]):
        return f"{one[1]}{{{one[2]}..{two[2]}}}{one[3]}"
    return first


def read_pipe(pipe: str) -> str | None:
    """The URL that a well-known ``pipe:`` command copies to its standard output, or None if this is no such command.

    >>> read_pipe("pipe:aws s3 cp s3://bucket/0.tar -"), read_pipe("pipe:curl -s -L https://host/0.tar")
    ('s3://bucket/0.tar', 'https://host/0.tar')
    >>> read_pipe("pipe:curl -s https://host/0.tar | tee x")
    """
    try:
        program, *words = shlex.split(pipe.removeprefix(PIPE))
    except ValueError:
        return None
    flags = _FLAGS.get(program)
    urls = [word for word in words if "://" in word]
    if flags is None or len(urls) != 1 or urlsplit(urls[0]).scheme not in SCHEMES:
        return None
    return urls[0] if all(flags.fullmatch(word) for word in words if word != urls[0]) else None
