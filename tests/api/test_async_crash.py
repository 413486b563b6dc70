"""Tasks of the providers' own asynchronous routes outlive the server that took them, ids and shapes and all."""

from __future__ import annotations

import time
from pathlib import Path

import httpx2
import pytest

from tests.conftest import LiveServer, start_server, stop_server

pytestmark = pytest.mark.slow

SYNTHESIS = "/api/v1/services/aigc/text2image/image-synthesis"
GENERATION = "/api/v1/services/aigc/image-generation/generation"


def start(folder: Path, step_s: str) -> LiveServer:
    return start_server(
        folder, module="tests.null_server", NULL_STEP_S=step_s, DANQING_TASK_LEASE_S="1"
    )


def test_the_next_server_draws_what_the_last_one_took(tmp_path: Path) -> None:
    first = start(tmp_path / "data", "5")  # a step that is never over
    balance = first.balance("operator")
    asynchronous = {"x-dashscope-async": "enable"}
    message = {"role": "user", "content": [{"text": "一只猫"}]}
    zhipu = first.client.post(
        "/paas/v4/async/images/generations", json={"model": "cogview-4", "prompt": "一只猫"}
    ).json()["id"]
    by_prompt, by_message = (
        first.client.post(path, json={"input": given}, headers=asynchronous).json()["output"][
            "task_id"
        ]
        for path, given in (
            (SYNTHESIS, {"prompt": "一只猫"}),
            (GENERATION, {"messages": [message]}),
        )
    )
    first.process.kill()
    first.process.wait()
    first.client.close()
    second = start(tmp_path / "data", "0")
    second.client.headers["authorization"] = f"Bearer {first.token}"
    try:
        deadline_s = time.monotonic() + 60
        outputs: dict[str, dict] = {}
        while any(
            outputs.get(one, {}).get("task_status") != "SUCCEEDED"
            for one in (by_prompt, by_message)
        ):
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
            for one in (by_prompt, by_message):
                outputs[one] = second.client.get(f"/api/v1/tasks/{one}").json()["output"]
        links = [
            outputs[by_prompt]["results"][0]["url"],
            outputs[by_message]["choices"][0]["message"]["content"][0]["image"],
        ]
        while (result := second.client.get(f"/paas/v4/async-result/{zhipu}").json())[
            "task_status"
        ] == "PROCESSING":
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
        links.append(result["image_result"][0]["url"])
        assert [httpx2.get(link).status_code for link in links] == [200] * 3
        assert balance - second.balance("operator") == 3 * 5000
    finally:
        assert stop_server(second) == 0
