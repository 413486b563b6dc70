"""The hidden AI-content label of GB 45438-2025: its fields as XMP text, and the seal that shows forgery. Knows text and a key, no file format.

The seal is in ReservedCode1, "danqing:1:METHOD:ISSUED:PICTURE", with ISSUED = HMAC-SHA256 over the label's fields (that we wrote
it) and PICTURE = HMAC-SHA256 over the fields and the picture's digest (that it belongs to these pixels), under a key that no
rotation changes: labels outlive tokens.
"""

from __future__ import annotations

import base64
import hmac
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast
from xml.etree import ElementTree

XMP_NAMESPACE = "http://www.tc260.org.cn/ns/AIGC/1.0/"
_XMP_CHARS_MAX = 65_536
_SEAL = "danqing:1"
_XMP = """\
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:TC260="{namespace}">
<TC260:AIGC>{value}</TC260:AIGC>
</rdf:Description></rdf:RDF></x:xmpmeta>"""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a label's seal says. `unchanged` is None where the label is not ours."""

    ours: bool
    unchanged: bool | None


class Sealer:
    """Makes and checks seals under one key."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def seal(self, fields: Mapping[str, str], method: str, digest: bytes) -> str:
        """ReservedCode1 of a label; `method` and `digest` are storage.containers' of its picture."""
        issued, picture = self._codes(fields, method, digest)
        return f"{_SEAL}:{method}:{issued}:{picture}"

    def check(self, fields: Mapping[str, str], method: str, digest: bytes) -> Sealed:
        """Whether we wrote these fields, and for this picture."""
        parts = fields.get("ReservedCode1", "")[:200].split(":")
        if len(parts) != 5 or ":".join(parts[:2]) != _SEAL:
            return Sealed(False, None)
        issued, picture = self._codes(fields, parts[2], digest)
        if not hmac.compare_digest(issued.encode(), parts[3].encode("utf-8", "replace")):
            return Sealed(False, None)
        same = hmac.compare_digest(picture.encode(), parts[4].encode("utf-8", "replace"))
        return Sealed(True, same and method == parts[2])

    def _codes(self, fields: Mapping[str, str], method: str, digest: bytes) -> tuple[str, str]:
        said = [fields.get(name, "") for name in ("Label", "ContentProducer", "ProduceID")]
        text = json.dumps([method, *said]).encode()
        issued = hmac.digest(self._secret, b"danqing label 1 issued\n" + text, "sha256")
        picture = hmac.digest(
            self._secret, b"danqing label 1 picture\n" + text + b"\n" + digest, "sha256"
        )
        return _shown(issued), _shown(picture)


def _shown(code: bytes) -> str:
    return base64.urlsafe_b64encode(code[:24]).decode("ascii")


def label_fields(*, producer: str, produce_id: str) -> dict[str, str]:
    """The fields of an image made by AI (Label "1"), not sealed. `producer` is the service's name or code."""
    return {
        "Label": "1",
        "ContentProducer": producer,
        "ProduceID": produce_id,
        "ReservedCode1": "",
        "ContentPropagator": "",
        "PropagateID": "",
        "ReservedCode2": "",
    }


def xmp(fields: Mapping[str, str]) -> str:
    """The hidden label as an XMP packet: property TC260:AIGC in the form of TC260's practice guide."""
    value = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
    return _XMP.format(namespace=XMP_NAMESPACE, value=html.escape(value))


def read_xmp(packet: str) -> dict[str, str] | None:
    """The AIGC fields of an XMP packet from anywhere; None when it holds none that can be read.

    Takes the property as an element or as an attribute.
    """
    if len(packet) > _XMP_CHARS_MAX or "<!" in packet:  # no DTD: XMP has none, attackers do
        return None
    name = f"{{{XMP_NAMESPACE}}}AIGC"
    try:
        root = ElementTree.fromstring(packet.strip("\0\ufeff \r\n\t"))  # noqa: S314 - no DTD, short
    except ElementTree.ParseError:
        return None
    values = [element.attrib.get(name) or "" for element in root.iter()]
    values += [element.text or "" for element in root.iter(name)]
    return read_value(next(filter(None, values), ""))


def read_value(text: str) -> dict[str, str] | None:
    """The AIGC fields of a label's JSON, also inside the deviant {"AIGC": {…}}; None where it is none.

    Half a surrogate pair, which JSON may have and no answer, becomes the sign for what cannot be shown.
    """
    if len(text) > _XMP_CHARS_MAX:
        return None
    try:
        found: object = json.loads(text)
        if isinstance(found, dict) and "AIGC" in found:
            found = cast("dict[str, object]", found)["AIGC"]
        if not isinstance(found, dict) or "Label" not in found:
            return None
        fields = cast("dict[str, object]", found)
        return {_sound(str(key)): _sound(str(value)) for key, value in fields.items()}
    except (ValueError, RecursionError):
        return None


def _sound(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
