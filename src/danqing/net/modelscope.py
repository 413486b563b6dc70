"""Checkpoints from ModelScope into a folder, over its files' HTTP API. For the operator's command line alone.

`GET /api/v1/models/ORG/NAME/repo/files?Revision=…&Recursive=True` lists files with their SHA-256, `…/repo?Revision=…&FilePath=…`
gives one, in part by `Range`, often by a redirect. What comes is held against the listing: a branch that moves meanwhile is
an error and no mixture. Public models only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from danqing.net.hub import UNWANTED, WANTED, Mark, Place, Pulled, PullError

TRIES = 5
"""Broken connections in a row, none of which brought a byte, before a file is given up."""
TIMEOUT_S = 60.0
PAGE_FILES = 500
PAGES_MAX = 200
COMMIT_CHARS = 40

Told = Callable[[str, int, int], None]
"""(file, bytes that are there, bytes in all)."""


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    size: int
    sha256: str
    """"" where the hub tells none."""

    def is_at(self, path: Path) -> bool:
        """Whole, at this path."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        return not self.sha256 or digest(path) == self.sha256


def pull(place: Place, folder: Path, kinds: frozenset[str], told: Told) -> Pulled:
    """As hub.pull; `told` hears how far each file is. Raises PullError."""
    mark = Mark(place, folder)
    place = mark.place()
    with httpx2.Client(timeout=TIMEOUT_S, follow_redirects=True) as client:
        try:
            return _Pull(client, place, folder, told, mark).run(kinds)
        except PullError:
            raise
        except (httpx2.HTTPError, OSError, ValueError, LookupError, TypeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            raise PullError(f"{place.id} at {place.revision}: {reason}") from error


class _Pull:
    def __init__(
        self, client: httpx2.Client, place: Place, folder: Path, told: Told, mark: Mark
    ) -> None:
        self._mark = mark
        self._client = client
        self._place = place
        self._folder = folder
        self._told = told
        self._repo = f"{place.endpoint}/api/v1/models/{place.id}/repo"
        self._revision = place.revision

    def run(self, kinds: frozenset[str]) -> Pulled:
        files, commit = self._listed()
        self._mark.check(commit)
        if len(commit) == COMMIT_CHARS:
            self._revision = commit
        if self._place.file is not None:
            wanted = [file for file in files if file.path == self._place.file]
            if not wanted:
                raise PullError(f"{self._place.id} has no {self._place.file}")
            kind = ""
        else:
            wanted = [file for file in files if is_wanted(file.path)]
            kind = self._kind(wanted)
            if kind not in kinds:
                raise PullError(
                    f"{self._place.id} is a {kind}, and none of {', '.join(sorted(kinds))}"
                )
        self._mark.begin(commit, {file.path: file.sha256 for file in wanted})
        for file in wanted:
            self._fetch(file)
        self._mark.end()
        return Pulled(self._folder, commit, kind)

    def _listed(self) -> tuple[list[_File], str]:
        """Every file, and the commit as far as the hub names it."""
        found: dict[str, _File] = {}
        commit = ""
        for page in range(1, PAGES_MAX + 1):
            query: dict[str, str | int] = {"Revision": self._revision, "Recursive": "True"}
            query |= {"PageNumber": page, "PageSize": PAGE_FILES}
            reply = self._client.get(f"{self._repo}/files", params=query)
            data = self._data(reply)
            before = len(found)
            for row in data["Files"]:
                if row["Type"] == "blob":
                    sha256 = str(row.get("Sha256") or "").lower()
                    file = _File(str(row["Path"]), int(row["Size"]), sha256)
                    found[file.path] = file
            last = data.get("LatestCommitter") or {}
            commit = str(last.get("Id") or last.get("ShortId") or commit)
            if len(data["Files"]) < PAGE_FILES or len(found) == before:
                break
        return list(found.values()), commit or self._revision

    def _data(self, reply: httpx2.Response) -> dict[str, Any]:
        """What an answer holds. Raises PullError with what the hub says where it is an error."""
        try:
            body = reply.json()
            if reply.is_success and body["Code"] == 200:
                return dict(body["Data"])
            said = str(body.get("Message") or "")
        except (ValueError, LookupError, TypeError, AttributeError):
            said = ""
        said = " ".join(said.split())[:200] or "no answer that can be read"
        raise PullError(f"{self._place.id} at {self._place.revision}: {reply.status_code}, {said}")

    def _kind(self, files: Sequence[_File]) -> str:
        """The pipeline's class, by the one file that is fetched to look at."""
        index = next((file for file in files if file.path == "model_index.json"), None)
        if index is None:
            raise PullError(
                f"{self._place.id} has no model_index.json: it is not in diffusers' layout"
            )
        with TemporaryDirectory() as aside:
            if index.is_at(self._folder / index.path):
                aside = self._folder
            else:
                self._fetch(index, Path(aside))
            found = json.loads((Path(aside) / index.path).read_text("utf-8"))
        return str(found.get("_class_name")) if isinstance(found, dict) else ""

    def _fetch(self, file: _File, folder: Path | None = None) -> None:
        """Into its place when it is whole; until then it is FILE.part, and goes on from there."""
        target = (folder or self._folder) / file.path
        part = target.with_name(target.name + ".part")
        if file.is_at(target):
            self._told(file.path, file.size, file.size)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        tries = 0
        while (there := part.stat().st_size) < file.size:
            try:
                self._go_on(file, part, there)
            except httpx2.TransportError:
                tries = tries + 1 if part.stat().st_size <= there else 0
                if tries >= TRIES:
                    raise
        if not file.is_at(part):
            part.unlink()
            raise PullError(
                f"{self._place.id}: {file.path} is not what the hub lists; run it again"
            )
        self._told(file.path, file.size, file.size)
        part.replace(target)

    def _go_on(self, file: _File, part: Path, there: int) -> None:
        query = {"Revision": self._revision, "FilePath": file.path}
        headers = {"Range": f"bytes={there}-", "Accept-Encoding": "identity"}
        with self._client.stream("GET", self._repo, params=query, headers=headers) as reply:
            if reply.status_code not in (200, 206):
                reply.read()
                self._data(reply)
                raise PullError(f"{self._place.id}: {file.path}: {reply.status_code}")
            is_part = reply.status_code == 206
            with part.open("ab" if is_part else "wb") as out:
                done = there if is_part else 0
                for chunk in reply.iter_bytes():
                    done += len(chunk)
                    if done > file.size:
                        raise PullError(f"{self._place.id}: {file.path} is longer than listed")
                    out.write(chunk)
                    self._told(file.path, done, file.size)
        if done < file.size and done <= there:
            raise PullError(f"{self._place.id}: {file.path} ends at {done} of {file.size} bytes")


def is_wanted(path: str) -> bool:
    """One of the files that draw. A path that leads elsewhere is none."""
    if any(part in ("", ".", "..") for part in path.split("/")) or path.count("/") > 1:
        return False
    name = path.rpartition("/")[2]
    return any(fnmatchcase(path, kind) for kind in WANTED) and not any(
        fnmatchcase(name, kind) for kind in UNWANTED
    )


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
