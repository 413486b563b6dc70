"""/docs as a reader has it: whole, in human words, with examples that run and nothing loaded from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from danqing.api import schemas
from danqing.api.reference_fields import TITLES, body_schemas, form_schema
from danqing.api.reference_page import Row, kind_of, rows_of
from danqing.api.reference_sections import CHAPTERS, FAULTS, Chapter, Example
from danqing.dialects.registry import DIALECTS
from danqing.domain import errors
from tests.conftest import LiveServer, shared_server
from tests.dialects.test_errors import CLASSES

BODIES = [
    pytest.param(schema, id=f"{dialect.name}-{number}")
    for dialect in DIALECTS.values()
    for number, schema in enumerate(
        body_schemas(dialect) + ([form_schema(dialect)] if dialect.form else [])
    )
]
EXAMPLES = [
    pytest.param(chapter, example, id=f"{chapter.id}-{number}")
    for chapter in CHAPTERS
    for number, example in enumerate(chapter.examples)
    if example.runs_in
    in ("bash", "test", "answer")  # the rest: tests/contract/test_clients_page.py
]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        given = dict(attrs)
        assert not {"src", "srcset", "onclick", "onload"} & set(given)
        if given.get("id"):
            self.ids[given["id"] or ""] += 1
        if tag == "a":
            self.links.append(given["href"] or "")
        if tag not in ("meta", "br", "wbr", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


server = shared_server()
"""Answers as any other: what its pictures show is not what the page tells."""


@pytest.fixture(scope="module")
def page(server: LiveServer) -> str:
    answer = server.client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    return answer.text


def test_it_loads_nothing_and_every_link_leads_somewhere(page: str) -> None:
    read = _Page()
    read.feed(page)
    assert read.open == []
    assert not {"script", "link", "img", "iframe"} & set(read.tags)
    assert "@import" not in page
    assert "url(" not in page
    assert {link for link in read.links if not link.startswith("#")} == {"/", "/openapi.json"}
    inner = {link[1:] for link in read.links if link.startswith("#")}
    assert inner <= set(read.ids)
    assert max(read.ids.values()) == 1
    for chapter in CHAPTERS:
        assert chapter.id in inner, "the contents list every chapter"


def test_no_name_of_ours_is_on_it(page: str) -> None:
    text = re.sub(r"<pre>.*?</pre>|<style>.*?</style>", "", page, flags=re.DOTALL)
    for name in DIALECTS:
        assert "_" not in name or name not in text
    assert set(TITLES) == {*DIALECTS, "jimeng"}


def test_every_route_is_on_it(server: LiveServer, page: str) -> None:
    document = server.client.get("/openapi.json").json()
    for path, item in document["paths"].items():
        for method in item:
            if not path.startswith("/paas/"):  # told once, under /api
                assert f">{method.upper()}</b> <code>{path}</code>" in page, (method, path)


@pytest.mark.parametrize("schema", BODIES)
def test_every_field_is_explained_to_its_last_part(schema: dict[str, Any]) -> None:
    rows = list(rows_of(schema))
    assert rows
    for row in rows:
        assert row.schema.get("description"), row.above + row.name
        if kind_of(row.schema) in ("object", "list of objects"):
            assert any(other.above.startswith(f"{row.above}{row.name}") for other in rows), row
    names = [row.above + row.name for row in rows]
    assert len(names) == len(set(names))


def test_a_message_is_told_down_to_its_picture() -> None:
    (chat,) = body_schemas(DIALECTS["chat"])
    told = {row.above + row.name for row in rows_of(chat)}
    assert "messages[].content[].image_url.url" in told
    (native,) = body_schemas(DIALECTS["dashscope_native"])
    rows: dict[str, Row] = {row.above + row.name: row for row in rows_of(native)}
    assert rows["input.messages"].is_needed
    assert kind_of(rows["input.messages[].content"].schema) == "string or list of objects"
    assert kind_of(rows["parameters.seed"].schema) == "integer from 0 to 2147483647"


@pytest.mark.parametrize("schema", BODIES)
def test_the_schemas_are_schemas(schema: dict[str, Any]) -> None:
    jsonschema_rs.validator_for(schema)


def test_every_error_has_its_row(page: str) -> None:
    assert {type(error) for error, _ in FAULTS} == set(CLASSES) - {errors.DanqingError}
    for code in ("moderation_blocked", "content_policy_violation", "1301", "1113", "Arrearage"):
        assert f"<code>{code}</code>" in page
    for code in ("DataInspectionFailed", "AccountOverdueError", "900", "300"):
        assert f"<code>{code}</code>" in page


ANSWERED = {"openai": "openai", "chat": "chat", "zhipu": "zhipu", "ark": "ark"}


@pytest.mark.parametrize(("chapter", "example"), EXAMPLES)
def test_an_example_does_what_it_says(
    server: LiveServer, chapter: Chapter, example: Example, tmp_path: Path
) -> None:
    if example.runs_in == "answer":
        dialect = ANSWERED.get(chapter.id, "dashscope_native")
        answer = json.loads(example.code)
        jsonschema_rs.validator_for(schemas.ANSWERS[dialect]).validate(answer)
        return
    code = example.code.replace("http://127.0.0.1:8000", server.url)
    code = code.replace("YOUR_TOKEN", server.token)
    command = ["bash", "-ec"] if example.runs_in == "bash" else [sys.executable, "-c"]
    done = subprocess.run(
        [*command, code],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        env=os.environ | {"DANQING_TOKEN": server.token, "NO_PROXY": "*"},
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"http://[^ ]+/files/|completed \d{4,}", done.stdout), done.stdout[:500]
