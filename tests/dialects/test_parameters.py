"""Every parameter of every dialect, tried on every model: honoured, refused by name, or ignored and told; none in silence."""

from __future__ import annotations

import pytest
from tools import parameters
from tools.parameters import APART, SUBJECTS, TARGET, TASK_PROBES, paths, probe, render

from danqing.dialects.registry import CLIENTS, DIALECTS, client_of
from danqing.domain.sizes import Size
from danqing.domain.task import Delivery, ImageTask

NO_OTHER_VALUE = frozenset({"parameters.is_async"})
"""Parameters whose every value asks for nothing: a header says it."""


def test_every_dialect_is_in_the_table() -> None:
    assert set(SUBJECTS) == set(DIALECTS), "add the dialect to tools/parameters.py"


@pytest.mark.parametrize("name", sorted(SUBJECTS))
def test_every_parameter_has_a_row(name: str) -> None:
    """A new field of a body needs a line in `tools/parameters.py`, with a value that asks for something."""
    known = set(SUBJECTS[name].probes)
    assert set(paths(DIALECTS[name].body)) - APART <= known
    assert known - SUBJECTS[name].beside <= set(paths(DIALECTS[name].body))


@pytest.mark.parametrize("name", sorted(SUBJECTS))
def test_no_parameter_is_dropped_in_silence(name: str) -> None:
    """`probe` itself fails where an error names another parameter than the one tried."""
    rows = probe(name)
    assert {row.path: row.silent for row in rows if row.silent} == {}
    assert {row.path for row in rows if not row.by_model} <= NO_OTHER_VALUE
    tried = {outcome for row in rows for found in row.tried.values() for outcome in found}
    assert {"honoured", "refused"} <= tried


def test_the_page_is_as_the_codecs_are() -> None:
    assert TARGET.read_text("utf-8") == render(), "run `make docs`"


def test_the_page_names_the_models() -> None:
    """Whoever reads it knows of every model what becomes of a value."""
    page = TARGET.read_text("utf-8")
    assert "some models" not in page
    assert "most models" not in page
    row = next(line for line in page.splitlines() if line.startswith("| `stream` | `true` |"))
    assert "`pocket`" in row
    assert "`gpt-image-*`" in row
    assert row.endswith("refused: all others |")


def test_names_are_grouped_only_where_none_is_left_out() -> None:
    everybody = ["a-1", "a-2", "b-1.0", "b-1.5", "b-2", "c"]
    assert list(parameters.grouped(["a-1", "a-2", "c"], everybody)) == ["`a-*`", "`c`"]
    assert list(parameters.grouped(["b-1.0", "b-1.5"], everybody)) == ["`b-1.*`"]
    assert list(parameters.grouped(["b-1.0", "b-2"], everybody)) == ["`b-1.0`", "`b-2`"]


def test_a_parameter_that_is_dropped_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: a codec that forgets `seed` is found out."""
    dialect = DIALECTS["draw"]
    real = type(dialect).decode_request

    def forgetful(self, body, card):
        return real(self, {key: body[key] for key in body if key != "seed"}, card)

    monkeypatch.setattr(type(dialect), "decode_request", forgetful)
    (row,) = [row for row in probe("draw") if row.path == "seed"]
    assert row.silent


@pytest.mark.parametrize("name", sorted(CLIENTS))
@pytest.mark.parametrize("field", sorted(TASK_PROBES))
def test_what_a_relay_says_to_be_able_to_say_reaches_the_wire(name: str, field: str) -> None:
    client = client_of(name, CLIENTS[name].extras)
    plain, changed = parameters.before_and_after(field)
    if client.unsupported(*changed) or field in UNSAID.get(name, ()):
        return
    target = parameters.target_of(changed[0])
    assert client.encode_request(*changed, target) != client.encode_request(
        *plain, parameters.target_of(plain[0])
    )


UNSAID = dict.fromkeys(("chat", "draw", "jimeng"), ("format",))
"""Pictures come in the format they come in, and are converted here."""


def test_the_probes_are_all_there() -> None:
    """Each field of a task and a delivery that a client may have set, but for what the relay sets itself."""
    ours = {"model", "fit_reference", "mask_from_alpha"}
    said = set(ImageTask.__dataclass_fields__) - ours
    assert said <= set(TASK_PROBES)
    assert Size(1024, 1024) == parameters.before_and_after("n")[0][0].size
    assert parameters.before_and_after("form")[1][1] == Delivery("b64_json")
