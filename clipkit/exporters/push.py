"""An exported folder to a model hub, and only one whose proof holds and whose files are those that were proven."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.config.names import DISTRIBUTION
from clipkit.data.urls import shown
from clipkit.exporters.card import CARD
from clipkit.exporters.provenance import NAME, file_hashes
from clipkit.towers.model_files import PARITY_FILE

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True)
class Push:
    """What goes where.

    Args:
        folder: The exported folder.
        repository: ``org/repo``.
        public: Whether anyone may read a repository that is made for it; one that is there stays what it is.
    """

    folder: Path
    repository: str
    public: bool = False

    def files(self) -> dict[str, int]:
        """Size of each file in bytes, by its path below the folder."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in found}

    def lines(self) -> Iterator[str]:
        """What would be uploaded, for people."""
        files = self.files()
        who = "public" if self.public else "private"
        yield f"to {self.repository} ({who} where it is made anew), {len(files)} files, {sum(files.values()) / 1e6:.1f} MB:"
        yield from (f"  {size:>13,}  {name}" for name, size in files.items())


def check_repository(repository: str) -> None:
    """Whether a name is one that the hub could have, and the hub's package is there.

    Raises:
        ValueError: If not.
    """
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise ValueError(f"--push {shown(repository)}: write org/repo, of letters, digits, '.', '_' and '-'")
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ValueError(f"--push needs huggingface_hub: pip install '{DISTRIBUTION}[hf]'")


def check_proof(folder: Path) -> None:
    """Whether a folder's proof holds, and its files are the ones that were proven.

    Raises:
        ValueError: If not, with the file.
    """
    report, stored = _read(folder / PARITY_FILE), _read(folder / NAME)
    if report.get("held") is not True:
        raise ValueError(f"{folder}: its {PARITY_FILE} does not say that the proof holds; export it again")
    proven = stored.get("files")
    if not isinstance(proven, dict) or PARITY_FILE not in proven:
        raise ValueError(f"{folder}: its {NAME} names no files that were proven; export it again")
    here = file_hashes(folder)
    other = [name for name in sorted({*proven, *here} - {NAME, CARD}) if proven.get(name) != here.get(name)]
    if other:
        raise ValueError(f"{folder}: {', '.join(other[:3])} changed since the proof; export it again")


def push(what: Push) -> str:
    """Upload a folder whose proof holds; the token is the hub's own affair (``hf auth login``, or HF_TOKEN) and shown nowhere.

    Returns:
        The address of the commit.

    Raises:
        ValueError: If the proof does not hold, or the hub refuses: then the folder is complete on this machine.
    """
    check_repository(what.repository)
    check_proof(what.folder)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    hub = HfApi()
    try:
        hub.create_repo(what.repository, private=not what.public, exist_ok=True)
        found = hub.upload_folder(
            repo_id=what.repository, folder_path=what.folder, commit_message="Export of clipkit, with its proof"
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        text = " ".join(shown(str(error)).split())[:400]
        private = "" if what.public else " --private"
        cure = f"the folder is complete; mend that and push again: hf upload {what.repository} {what.folder}{private}"
        raise ValueError(f"--push {what.repository}: the hub cannot be written to ({text}); {cure}") from None
    return str(found.commit_url)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path.parent} has no {path.name} that can be read ({error}); only a proven export is pushed"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: no report; only a proven export is pushed")
    return found
