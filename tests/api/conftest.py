"""The server that tests of the admin API share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import LiveServer, start_server, stop_server

BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]


@pytest.fixture(scope="session", params=BOTH)
def live(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server that draws nothing much, with every label in place; its client is the operator."""
    yield from serve(request, tmp_path_factory)


def serve(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, **more: str
) -> Iterator[LiveServer]:
    environment = {"DANQING_LABELS__PIXEL_MARK": "true", **more}
    if request.param == "postgresql":
        environment["DANQING_DATABASE_URL"] = request.getfixturevalue("postgres").create_database()
    folder = tmp_path_factory.mktemp("admin") / "data"
    server = start_server(folder, module="tests.null_server", **environment)
    yield server
    assert stop_server(server) == 0
