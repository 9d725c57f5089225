"""Hostile servers and addresses: redirects into the network, options for programs, secrets in what is said and kept."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import urllib.request
from pathlib import Path

import rich.console
import webdataset
from lightning.pytorch.loggers import CSVLogger
from webdataset.gopen import gopen_curl

from clipkit.data.fetch import Policy, fetch_small
from clipkit.data.source import expand_shards
from clipkit.data.tar import ShardError
from clipkit.data.transport import open_remote
from tests.data.web import Web
from tests.security.lab import CANARY, Exploit, Lab, environment, fires, raises

PUBLIC = "http://93.184.215.14"
"""An address of the public network; a proxy of ours answers in its place, and nothing leaves this machine."""
INSIDE = (
    "http://169.254.169.254/latest/meta-data",
    "http://[fe80::1]/x",
    "http://127.0.0.1:8008/x",
    "http://[::ffff:169.254.169.254]/x",
    "http://10.0.0.1/x",
    "http://192.168.0.1/x",
    "http://0.0.0.0/x",
    "file:///etc/passwd",
    "ftp://93.184.215.14/x",
    "data:text/plain,x",
)
QUICK = Policy(tries=1, timeout=2.0, deadline=5.0, pause=0.01)


class Proxy(Web):
    """Answers for every host; ``asked`` holds the addresses."""

    def __init__(self, target: str) -> None:
        self.target, self.asked = target, []
        super().__init__()

    def answer(self, request: object) -> None:
        self.asked.append(request.path)
        first = request.path.startswith(PUBLIC)
        body = b"" if first else b"credentials"
        request.send_response(302 if first else 200)
        if first:
            request.send_header("Location", self.target)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)


def through_proxy(target: str, work: object) -> list[str]:
    """What a client asks of the network, sent from a public server to an address inside."""
    proxy = Proxy(target)
    try:
        with environment(http_proxy=proxy.url, https_proxy=proxy.url, no_proxy="", NO_PROXY=""):
            work()
    finally:
        proxy.close()
    return [path for path in proxy.asked if not path.startswith(PUBLIC)]


def follow_plainly(lab: Lab) -> None:
    """urllib follows a public server to a cloud's metadata."""

    def plain() -> None:  # an opener of its own: urlopen keeps its first one, which may have seen no proxy
        urllib.request.build_opener().open(f"{PUBLIC}/0.tar", timeout=30)

    lab.harmed(through_proxy(INSIDE[0], lambda: fires(plain)))


def follow_here(lab: Lab) -> None:
    """No client of ours asks for such an address: shards, lists beside them, evaluation sets."""
    for target in INSIDE:
        for read in (
            lambda: open_remote(f"{PUBLIC}/0.tar", 2.0),
            lambda: fetch_small(f"{PUBLIC}/index.json", 1 << 20, QUICK),
        ):
            lab.harmed(through_proxy(target, lambda read=read: fires(read)))
    url = f"{PUBLIC}/0.tar"
    data = {"train": {"x": {"shards": url}}, "batch_size": 8, "workers": 0}
    for command in (
        ["fit", lab.config(data=data), f"run={lab.folder / 'r'}"],
        ["data", "index", url],
        ["evaluate", lab.world.model, "--data", f"{PUBLIC}/set"],
        ["embed", lab.world.model, url, "--out", lab.folder / "e"],
    ):
        lab.harmed(through_proxy(INSIDE[0], lambda command=command: lab.refused(*command)))


def options_plainly(lab: Lab) -> None:
    """webdataset hands the address to curl as its last word, where it may be an option."""
    (lab.folder / "rc").write_text(f'url = "{lab.world.shard.as_uri()}"\noutput = "{lab.marker}"\n')
    fires(lambda: gopen_curl(f"-K{lab.folder / 'rc'}").read())


def options_here(lab: Lab) -> None:
    """No program is started for an address, and what is no address of a file is none."""
    for url in (f"-K{lab.folder / 'rc'}", f"-o{lab.marker}", f"--output={lab.marker}"):
        raises(ValueError, lambda url=url: expand_shards(url))
        one = {"train": {"x": {"shards": url}}, "batch_size": 8, "workers": 0}
        lab.refused("fit", lab.config(data=one), f"run={lab.folder / 'r'}")
    for url in (
        f"https://127.0.0.1:9/x' -o {lab.marker} '.tar",
        f"https://127.0.0.1:9/$(touch {lab.marker}).tar",
        f"https://127.0.0.1:9/`touch {lab.marker}`.tar",
        "file:///etc/passwd",
        f"file:{lab.world.shard}",
        "htgs://bucket/0.tar",
        "ais://bucket/0.tar",
        "ftp://127.0.0.1/0.tar",
        "hdfs://127.0.0.1/0.tar",
        "http://127.0.0.1:9/0.tar\nHost: evil",
    ):
        raises(ValueError, lambda url=url: expand_shards(url))
    raises((ShardError, ValueError), lambda: fetch_small("gs://-oMARKER/x.json", 1 << 20, QUICK))


VARIABLES = {
    name: f"{CANARY}-{name}" for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "DB_KEY")
}


def told(folder: Path) -> list[str]:
    """The files under a folder that hold a canary, in their bytes or their names."""
    found = []
    for path in folder.rglob("*"):
        if CANARY in path.name or (path.is_file() and not path.is_symlink() and CANARY.encode() in path.read_bytes()):
            found.append(str(path.relative_to(folder)))
    return found


def secret_url(web: Web, name: str) -> str:
    """An address with a password and a signature."""
    place = web.url.replace("http://", f"http://user:{CANARY}@")
    return f"{place}/{name}?X-Amz-Signature={CANARY}&token={CANARY}"


def secrets_plainly(lab: Lab) -> None:
    """Where plain libraries leave an address's password: Lightning's logger in a file, webdataset in its error, rich among the locals."""
    web = Web()
    url = secret_url(web, "absent.tar")
    try:
        logger = CSVLogger(lab.folder, "plain")
        logger.log_hyperparams({"train_data": url})
        logger.save()
        failed = raises((tarfile.TarError, OSError), lambda: iterate_strictly(url))  # whichever end sees curl's first
    finally:
        web.close()
    printed = io.StringIO()
    try:
        raise RuntimeError(f"no samples from {len(url)} characters")
    except RuntimeError:
        rich.console.Console(file=printed, width=200).print_exception(show_locals=True)
    lab.harmed(len(told(lab.folder)) == 1 and CANARY in failed and CANARY in printed.getvalue())
    shutil.rmtree(lab.folder / "plain")


def iterate_strictly(url: str) -> None:
    """Read an address by webdataset, which raises what goes wrong."""
    for _ in webdataset.WebDataset(url, shardshuffle=False):
        pass


def secrets_here(lab: Lab) -> None:
    """A run, a resumed one, one that fails and one that stops short: nothing that is kept or said holds a canary."""
    web = Web()
    web.files["/0.tar"] = lab.world.shard.read_bytes()
    web.files["/sizes.json"] = json.dumps({"0.tar": 16}).encode()
    cache, run = lab.folder / "cache", lab.folder / "run"
    logs = {"every": "1 steps", "tensorboard": True, "wandb": {"project": "x", "mode": "offline"}}
    said = []
    command_line = [f"data.train.x.shards={json.dumps(secret_url(web, '0.tar'))}", f"data.cache={cache}", f"run={run}"]
    try:
        with environment(**VARIABLES, CLIPKIT_CACHE=str(cache), WANDB_SILENT="true", WANDB_DIR=str(lab.folder)):
            config = lab.world.write_config(lab.folder.parent / f"{lab.folder.name}.yaml", logging=logs)
            base = ["fit", config, "data.train.squares=null", *command_line]
            import sys
            from unittest import mock

            with mock.patch.object(sys, "argv", ["clipkit", *map(str, base)]):
                lab.passed(*base)
                said.append(lab.said)
                lab.passed(*base)  # finished: compared with what stands there
                said.append(lab.said)
                shutil.rmtree(run / "checkpoints" / "2")
                lab.passed(*base)
                said.append(lab.said)
                lab.refused(*base, "optim.lr=0.5")  # another configuration: what differs is named
                said.append(lab.said)
                other = secret_url(web, "0.tar").replace("/0.tar", "/absent.tar")
                lab.refused(*base, f"data.train.x.shards={json.dumps(other)}", f"run={lab.folder / 'b'}")
                said.append(lab.said)
                lab.refused(*base, "data.train.x.shards=[]", f"run={lab.folder / 'c'}", "nonsense=1")
                said.append(lab.said)
                web.files["/0.tar"] = b"<html>" * 100
                shutil.rmtree(cache)
                code = lab.cli(*base, f"run={lab.folder / 'd'}")
                assert code in (1, 2), lab.said
                said.append(lab.said)
                with environment(CLIPKIT_TRACEBACK="1"):
                    lab.cli(*base, f"run={lab.folder / 'f'}")
                    said.append(lab.said)
            lab.passed("export", run, "--out", lab.folder / "exported")
            lab.passed("report", run, "--out", lab.folder / "report.html")
    finally:
        web.close()
    found = told(lab.folder)
    assert not found, found
    assert CANARY not in "".join(said), [
        text[max(text.find(CANARY) - 300, 0) :][:600] for text in said if CANARY in text
    ]


EXPLOITS = (
    Exploit("redirects", follow_plainly, follow_here),
    Exploit("options for programs", options_plainly, options_here),
    Exploit("secrets", secrets_plainly, secrets_here),
)
