"""Open a remote file as a stream of bytes: http(s) by the standard library, s3, gs and hf by fsspec, a pipe by its program.

The standard library's client is used for http because it is synchronous (nothing to inherit by a fork) and lets every
redirect be looked at before it is followed.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import shlex
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPMessage
from typing import IO, Any, TypeVar
from urllib.parse import unquote, urlsplit

from clipkit.config.names import DISTRIBUTION
from clipkit.data.urls import PIPE, shown

CHUNK = 1 << 20
_PASSING = frozenset((408, 421, 425, 429))  # of the answers below 500 those that another try may change
_ETAGS = ("ETag", "etag", "sha256", "blob_id", "md5Hash", "content_md5")
_EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
T = TypeVar("T")


class Refused(Exception):
    """A failure that stays however often one asks.

    Args:
        cause: What happened.
        cure: What to do about it.
        absent: Whether the server says that there is no such file, or that it is not for us.
    """

    def __init__(self, cause: str, cure: str, *, absent: bool = False) -> None:
        super().__init__(cause)
        self.cause, self.cure, self.absent = cause, cure, absent


@dataclass(frozen=True)
class Body:
    """An open remote file.

    Args:
        size: Its bytes as announced, None where they are not.
        etag: What names this version of it, None where nothing does.
        read: Gives the next bytes, at most so many; none at the end.
        close: Ends it.
    """

    size: int | None
    etag: str | None
    read: Callable[[int], bytes]
    close: Callable[[], object]


def within(seconds: float, call: Callable[[], T]) -> T:
    """What ``call`` returns or raises, given so many seconds; a call that takes longer is left to itself.

    Raises:
        TimeoutError: If it has not ended by then.
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(seconds, 0.0))
    if failure:
        raise failure[0]
    if not result:
        raise TimeoutError(f"no answer within {seconds:.3g} s")
    return result[0]


def open_remote(url: str, timeout: float) -> Body:
    """Open a remote file.

    Args:
        url: Of one of ``urls.SCHEMES``, or a ``pipe:`` that the user allowed.
        timeout: Seconds that the server may be silent.

    Raises:
        Refused: If asking again is no use.
        OSError: If it may be.
        ValueError: If the scheme's package is not installed.
    """
    if url.startswith(PIPE):
        return _open_pipe(url, timeout)
    return _open_http(url, timeout) if urlsplit(url).scheme in ("http", "https") else _open_fsspec(url, timeout)


def privacy(host: str) -> int:
    """How near to this machine a host is: 0 public, 1 a private network, 2 this machine, 3 link-local (a cloud's metadata).

    A name that cannot be looked up here counts as public: a proxy, if any, will do it.
    """
    try:
        found = {str(info[4][0]).partition("%")[0] for info in socket.getaddrinfo(host, None)}
    except OSError:
        return 0
    return max(_privacy(ipaddress.ip_address(address)) for address in found)


def _privacy(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_link_local or address.is_multicast:
        return 3
    if address.is_loopback or address.is_unspecified:
        return 2
    return 0 if address.is_global else 1


def check_redirect(before: str, after: str) -> None:
    """Whether a redirect may be followed: never away from https, nor to a host nearer to this machine than the one that sent it.

    Raises:
        Refused: If not.
    """
    old, new = urlsplit(before), urlsplit(after)
    allowed = ("https",) if old.scheme == "https" else ("http", "https")
    if new.scheme not in allowed:
        why = f"to a {new.scheme or 'nameless'} address"
    elif not new.hostname or privacy(new.hostname) > privacy(old.hostname or ""):
        why = f"to {new.hostname}, an address inside this network,"
    else:
        return
    raise Refused(f"a redirect from {old.hostname} {why} was not followed", "name the file's own https address")


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        check_redirect(req.full_url, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> Any:
        target = headers.get("location", "")
        if urlsplit(target).scheme not in ("", "http", "https"):  # urllib's own refusal shows the whole address
            check_redirect(req.full_url, target)
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """The opener of urllib, less its handlers of files, ftp and data: URLs."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


def _open_http(url: str, timeout: float) -> Body:
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(parts._replace(netloc=host, fragment="").geturl())
    request.add_header("User-Agent", "clipkit")
    if at:  # unredirected: the password is this host's alone
        coded = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {coded}")
    try:
        answer = _opener().open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        text = f"the server answered {error.code} {error.reason}"
        if error.code < 500 and error.code not in _PASSING:
            cure = "check the address" if error.code in (404, 410) else "check the address and your rights to it"
            raise Refused(text, cure, absent=error.code in (401, 403, 404, 410)) from None
        raise OSError(text) from None
    length = answer.headers.get("Content-Length", "")
    return Body(int(length) if length.isdigit() else None, answer.headers.get("ETag"), answer.read1, answer.close)


def _open_fsspec(url: str, timeout: float) -> Body:
    import fsspec

    scheme = urlsplit(url).scheme
    try:
        # a fresh one each time: an instance that a fork inherited waits for a loop that does not run here
        system = fsspec.filesystem(scheme, skip_instance_cache=True)
    except ImportError as error:
        text = f"{scheme}:// needs {_EXTRAS.get(scheme, 'another package')}; pip install '{DISTRIBUTION}[remote]'"
        raise ValueError(text) from error
    try:
        info = system.info(url)
        file = system.open(url, "rb", cache_type="none", block_size=8 * CHUNK)
    except FileNotFoundError:
        raise Refused("there is no such file", "check the address", absent=True) from None
    except PermissionError as error:
        raise Refused(f"access is denied ({error})", "check your rights to it", absent=True) from None
    size, etag = info.get("size"), next((str(info[name]) for name in _ETAGS if info.get(name)), None)
    # the client's own time limits differ and may be none: each piece is given ours
    return Body(size, etag, lambda count: within(timeout, lambda: bytes(file.read(8 * count))), file.close)


def _open_pipe(url: str, timeout: float) -> Body:
    command = shlex.split(url.removeprefix(PIPE))
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    except OSError as error:
        raise Refused(f"{command[0]} cannot be started ({error.strerror})", "install it, or mend the pipe") from None
    assert process.stdout is not None
    output = process.stdout

    def read(count: int) -> bytes:
        data = within(timeout, lambda: output.read(count))
        if not data and within(timeout, process.wait):
            raise OSError(f"{command[0]} ended with code {process.returncode}")
        return data

    def close() -> None:
        process.kill()
        with contextlib.suppress(Exception):
            within(1.0, process.wait)
        within(1.0, output.close)

    return Body(None, None, read, close)


def words(error: BaseException) -> str:
    """An error in one line, without secrets."""
    reason = getattr(error, "reason", None) or error
    return shown(" ".join(str(reason).split()) or type(error).__name__)
