"""The API reference is true: every dialect's answers are declared, and schemathesis finds nothing that breaks them.

Schemathesis takes each mount's own document and sends what it allows, what it nearly allows and what it forbids.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema_rs
import pytest

from danqing.api import schemas
from danqing.dialects.registry import DIALECTS
from tests.conftest import LiveServer, shared_server
from tests.dialects.test_errors import CLASSES, instance
from tests.dialects.test_golden import GOLDEN

EXAMPLES_MAX = 25
"""Per operation and phase."""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
STRICT = (*CHECKS, "negative_data_rejection", "ignored_auth")
SETTERS = ("--exclude-path", "/tokens/{token}", "--exclude-path", "/session")
"""What would end the token that asks."""
CHAT = "/chat/completions"
RUNS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "v1": ("/v1", STRICT, ("--exclude-path", CHAT)),
    # Draw's, which answers HTTP 200 to everything.
    "v1 chat": ("/v1", CHECKS, ("--include-path", CHAT)),
    "paas": ("/paas/v4", STRICT, ()),
    "api paas": ("/api/paas/v4", STRICT, ()),
    "ark": ("/api/v3", STRICT, ()),
    "dashscope": ("/api/v1", STRICT, ()),
    "account": ("/account/v1", STRICT, SETTERS),
    "admin": ("/admin/v1", STRICT, SETTERS),
    # No token is asked for: the link is its own leave.
    "files": ("", (*CHECKS, "negative_data_rejection"), ("--include-path", "/files/{name}")),
}
"""A mount, what is checked of it, and of which of its paths."""


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_golden_answers_are_as_declared(path: Path) -> None:
    golden = json.loads(path.read_bytes())
    schema = schemas.ANSWERS[golden["dialect"]]
    jsonschema_rs.validator_for(schema).validate(golden["reply"])


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_every_error_is_as_declared(name: str) -> None:
    for cls in CLASSES:
        reply = DIALECTS[name].encode_error(instance(cls), "req-1")
        known = schemas.ERRORS if reply.status >= 400 else schemas.ANSWERS
        jsonschema_rs.validator_for(known[name]).validate(reply.body)


def test_every_route_that_draws_declares_its_answers(server: LiveServer) -> None:
    document = server.client.get("/openapi.json").json()
    drawing = [
        (path, item["post"])
        for path, item in document["paths"].items()
        if "post" in item and item["post"].get("summary", "").startswith("Draw")
    ]
    assert len(drawing) >= 6
    for path, operation in drawing:
        assert operation["requestBody"]["required"], path
        assert set(operation["responses"]) >= {"200", "4XX", "5XX"}, path
        for status, answer in operation["responses"].items():
            for kind, content in answer["content"].items():
                assert content["schema"], (path, status, kind)


def test_the_reference_says_where_no_token_is_needed(server: LiveServer) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    public = {"/account/v1/sign-up", "/account/v1/sign-in", "/account/v1/payments"}
    mounted = ("/v1", "/paas", "/api", "/admin", "/account")
    for path, item in paths.items():
        for operation in item.values():
            assert "422" not in operation["responses"], path
            if path.startswith(mounted):
                assert operation["security"] == ([] if path in public else [{"token": []}]), path


rich = shared_server(
    DANQING_OPERATOR_CHARACTERS=str(10**12),
)


@pytest.mark.slow
@pytest.mark.timeout(960)  # some 600 requests a mount
@pytest.mark.parametrize("run", RUNS)
def test_schemathesis(rich: LiveServer, run: str, tmp_path: Path) -> None:
    """No 5xx, no answer outside the document; the same requests every time."""
    mount, checks, paths = RUNS[run]
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "schemathesis"),
            "run",
            f"{rich.url}{mount}/openapi.json",
            "--header",
            f"Authorization: Bearer {rich.token}",
            "--checks",
            ",".join(checks),
            "--phases",
            "examples,coverage,fuzzing",
            "--max-examples",
            str(EXAMPLES_MAX),
            "--seed",
            "20261126",
            "--generation-database",
            "none",
            "--continue-on-failure",
            "--no-color",
            *paths,
        ],
        capture_output=True,
        text=True,
        timeout=900,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-15_000:]
    crashed = [line for line in rich.lines if "crashed" in line["event"]]
    assert crashed == []
