"""Where a pulled checkpoint came from: the record beside it, and when it may change. Pure: text in, text out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

RECORD = "danqing.json"
"""In a pulled folder; of one file alone, `FILE.danqing.json` beside it."""


@dataclass(frozen=True, slots=True)
class Record:
    endpoint: str
    """The hub."""
    id: str
    """ORG/NAME there."""
    commit: str
    is_whole: bool = True
    """False while it is pulled, and after a run that failed."""
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    """Path -> SHA-256, where the hub tells them."""

    @classmethod
    def of(cls, text: str) -> Record:
        """Raises ValueError for what is no record."""
        found = json.loads(text)
        try:
            whole = bool(found.get("is_whole", True))
            files = {str(path): str(digest) for path, digest in found.get("files", {}).items()}
            endpoint, name, commit = (str(found[key]) for key in ("endpoint", "id", "commit"))
            return cls(endpoint, name, commit, whole, files)
        except (AttributeError, LookupError, TypeError) as error:
            raise ValueError("not a record of a pull") from error

    def text(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    def change_to(self, endpoint: str, commit: str, revision: str) -> str | None:
        """Why this may not become that commit in silence; None where it is the same."""
        if (endpoint, commit) == (self.endpoint, self.commit):
            return None
        return (
            f"{self.id} is here at {self.commit} of {self.endpoint}, and {revision} of {endpoint} is {commit}:"
            f" --revision {commit} takes that, --revision {self.commit} keeps this"
        )


def fault(record: Record | None, wanted: str) -> str | None:
    """Why what was pulled is not the commit that is wanted; None where it is."""
    if record is None:
        return f"there is no {RECORD} that says which commit this is: pull it, or leave the revision out"
    if not record.is_whole:
        return f"the pull of {record.id} at {record.commit} did not end: run it again"
    if record.commit != wanted:
        return f"{record.id} is here at {record.commit}, not at {wanted}"
    return None
