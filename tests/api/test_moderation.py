"""Moderation through a live server: every dialect's refusal, thresholds by account, what is kept, and reloading."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LiveServer, cli, start_server, stop_server

LISTED = "zorblax"  # level 1
MILD = "quuxly"  # level 2
WORDS = f"{LISTED}\t1\tmade up\n{MILD}\t2\tmade up\n"
ASYNC = {"x-dashscope-async": "enable"}


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lists") / "words.txt"
    path.write_text(WORDS, "utf-8")
    path.with_name("allowed.txt").write_text(f"not {LISTED}\n", "utf-8")
    return path


@pytest.fixture(scope="module")
def config(lists: Path) -> Path:
    path = lists.with_name("danqing.toml")
    path.write_text(
        f'[moderation]\nword_lists = ["{lists}"]\nallow_lists = ["{lists.with_name("allowed.txt")}"]\n'
    )
    return path


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Iterator[LiveServer]:
    server = start_server(
        tmp_path_factory.mktemp("moderated") / "data",
        module="tests.null_server",
        args=("--config", str(config)),
        DANQING_TASK_LEASE_S="0.6",
    )
    yield server
    assert stop_server(server) == 0


def messages(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]}


def qwen(text: str, **parameters: Any) -> dict[str, Any]:
    content = {"messages": [{"role": "user", "content": [{"text": text}]}]}
    return {"model": "qwen-image", "input": content, "parameters": parameters}


# path, body for a text, status, where the code is, the code
REQUESTS: dict[str, tuple[str, Callable[[str], dict[str, Any]], int, Callable[[Any], Any], str]] = {
    "draw": (
        "/v1/chat/completions",
        lambda text: {"model": "draw", "prompt": text},
        200,
        lambda body: body["error"]["code"],
        "content_policy_violation",
    ),
    "openai": (
        "/v1/images/generations",
        lambda text: {"model": "dall-e-3", "prompt": text},
        400,
        lambda body: body["error"]["code"],
        "content_policy_violation",
    ),
    "jimeng": (
        "/v1/images/generations",
        lambda text: {"model": "jimeng-4.0", "prompt": text, "size": "1:1"},
        400,
        lambda body: body["error"]["code"],
        "content_policy_violation",
    ),
    "qwen": (
        "/v1/images/generations",
        qwen,
        400,
        lambda body: body["error"]["code"],
        "content_policy_violation",
    ),
    "chat": (
        "/v1/chat/completions",
        lambda text: messages(text) | {"model": "dall-e-3"},
        400,
        lambda body: body["error"]["code"],
        "content_policy_violation",
    ),
    "zhipu": (
        "/api/paas/v4/images/generations",
        lambda text: {"model": "cogview-4", "prompt": text, "user_id": "end-user-7"},
        400,
        lambda body: body["error"]["code"],
        "1301",
    ),
    "zhipu async": (
        "/api/paas/v4/async/images/generations",
        lambda text: {"model": "cogview-4", "prompt": text},
        400,
        lambda body: body["error"]["code"],
        "1301",
    ),
    "dashscope": (
        "/api/v1/services/aigc/multimodal-generation/generation",
        qwen,
        400,
        lambda body: body["code"],
        "DataInspectionFailed",
    ),
    "dashscope async": (
        "/api/v1/services/aigc/text2image/image-synthesis",
        lambda text: {"model": "qwen-image", "input": {"prompt": text}, "parameters": {}},
        400,
        lambda body: body["code"],
        "DataInspectionFailed",
    ),
    "ark": (
        "/api/v3/images/generations",
        lambda text: {"model": "doubao-seedream-4-0-250828", "prompt": text},
        400,
        lambda body: body["error"]["code"],
        "InputTextSensitiveContentDetected",
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_every_api_refuses_in_its_own_shape_for_nothing(live: LiveServer, name: str) -> None:
    path, body, status, code_of, code = REQUESTS[name]
    before = live.balance("operator")
    headers = ASYNC if name == "dashscope async" else {}
    for text in (f"a {LISTED} on a hill", "ｚｏｒｂｌａｘ", "z-o-r-b-l-a-x", "zоrb\u200dlаx"):
        answer = live.client.post(path, json=body(text), headers=headers)
        assert answer.status_code == status, answer.text
        assert code_of(answer.json()) == code
        assert LISTED not in answer.text  # what was found is nobody's business
    allowed = live.client.post(path, json=body(f"a cat, not {LISTED}"), headers=headers)
    assert allowed.status_code == 200, allowed.text
    assert live.balance("operator") <= before


def test_zhipus_filter_on_success_and_on_refusal(live: LiveServer) -> None:
    path, body, *_ = REQUESTS["zhipu"]
    refused = live.client.post(path, json=body(LISTED)).json()
    assert refused["contentFilter"] == [{"role": "user", "level": 1}]
    mild = live.client.post(path, json=body(f"a {MILD} cat")).json()
    assert {"role": "user", "level": 2} in mild["content_filter"]
    fine = live.client.post(path, json=body("a cat")).json()
    assert {"role": "user", "level": 3} in fine["content_filter"]


def test_negative_prompts_and_earlier_turns_count(live: LiveServer) -> None:
    negative = qwen("a cat", negative_prompt=LISTED)
    answer = live.client.post(REQUESTS["dashscope"][0], json=negative)
    assert answer.json()["code"] == "DataInspectionFailed"
    chat = messages(f"draw a {LISTED}", "I would rather not", "a cat then") | {"model": "dall-e-3"}
    answer = live.client.post(REQUESTS["chat"][0], json=chat)
    assert answer.json()["error"]["code"] == "content_policy_violation"


def test_an_account_may_have_its_own_threshold(live: LiveServer) -> None:
    live.account("strict", 1_000_000)
    path, body, *_ = REQUESTS["openai"]

    def statuses(level: int | None) -> tuple[int, int]:
        done = live.client.patch("/admin/v1/accounts/strict", json={"block_level": level})
        assert done.json()["block_level"] == level
        # A new token each time: what is known of one is kept for 5 s.
        made = live.client.post("/admin/v1/tokens", json={"account": "strict"})
        headers = {"authorization": f"Bearer {made.json()['token']}"}
        mild, listed = (
            live.client.post(path, json=body(text), headers=headers).status_code
            for text in (MILD, LISTED)
        )
        return mild, listed

    assert statuses(2) == (400, 400)
    assert statuses(-1) == (200, 200)
    assert statuses(None) == (200, 400)
    bad = live.client.patch("/admin/v1/accounts/strict", json={"block_level": 4})
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "block_level")


def test_the_command_line_sets_the_threshold(live: LiveServer) -> None:
    live.account("lax")
    said = live.cli("account", "block-level", "lax", "-1").stdout
    assert said == "block level of account lax: -1\n"
    assert live.client.get("/admin/v1/accounts/lax").json()["block_level"] == -1
    assert live.cli("account", "block-level", "lax", "low", check=False).returncode == 1


def test_refusals_are_kept_with_the_end_user(live: LiveServer) -> None:
    path, body, *_ = REQUESTS["zhipu"]
    token = live.account("refused", 100_000)
    answer = live.client.post(path, json=body(LISTED), headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 400
    (row,) = live.client.get("/admin/v1/refusals?account=refused").json()["data"]
    assert row["object"] == "refusal"
    assert (row["end_user"], row["role"], row["level"]) == ("end-user-7", "user", 1)
    assert (row["subject"], row["source"], row["category"]) == ("text", "lists", "made up")
    assert (row["dialect"], row["model"], row["task_id"]) == ("zhipu", "cogview-4", None)
    assert LISTED not in str(row)
    line = live.cli("refusals", "--account", "refused").stdout.rstrip("\n").split("\t")
    assert line[2:9] == ["refused", "end-user-7", "user", "1", "text", "lists", "made up"]
    after = live.client.get(f"/admin/v1/refusals?account=refused&after={row['id']}").json()
    assert after["data"] == []
    assert live.metric("danqing_moderation_total") > 0


def test_lists_are_reloaded_whole_or_not_at_all(
    live: LiveServer, lists: Path, config: Path
) -> None:
    path, body, *_ = REQUESTS["openai"]

    def status(text: str) -> int:
        return live.client.post(path, json=body(text)).status_code

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 60
        while status(text) != 400:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    try:
        assert status("flimjam") == 200
        lists.write_text(f"{WORDS}flimjam\t1\tmade up\n", "utf-8")
        answer = live.client.post("/admin/v1/moderation/reload")
        assert answer.json()["object"] == "moderation.reload"
        assert status("flimjam") == 400

        lists.write_text(f"{WORDS}flimjam\t1\nbrizzle\t1\tx\n", "utf-8")
        answer = live.client.post("/admin/v1/moderation/reload")
        assert answer.status_code == 400
        assert "words.txt, line 3" in answer.json()["error"]["message"]
        checked = cli("moderation", "check", "--config", str(config), check=False)
        assert checked.returncode == 1
        assert "words.txt, line 3" in checked.stderr
        bad = live.cli("moderation", "reload", "--config", str(config), check=False)
        assert bad.returncode == 1
        assert (status("flimjam"), status("brizzle")) == (400, 200)  # as it was

        lists.write_text(f"{WORDS}brizzle\t1\tx\n", "utf-8")
        live.cli("moderation", "reload", "--config", str(config))
        wait_for("brizzle")
        lists.write_text(f"{WORDS}snorkax\t1\tx\n", "utf-8")
        live.process.send_signal(signal.SIGHUP)
        wait_for("snorkax")
    finally:
        lists.write_text(WORDS, "utf-8")
        live.client.post("/admin/v1/moderation/reload")


def test_trying_a_text(config: Path) -> None:
    done = cli("moderation", "try", "a Z.O.R.B.L.A.X", "--config", str(config))
    assert done.stdout == f"level: 1\nterm: {LISTED}\ncategory: made up\nrefused: True\n"
    done = cli("moderation", "try", "a cat", "--config", str(config), "--json")
    assert done.stdout == '{"level": 3, "term": null, "category": null, "refused": false}\n'


def test_a_server_refuses_to_start_on_bad_lists(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("fine\t1\tx\nnot fine\nworse\t9\tx\n", "utf-8")
    (tmp_path / "c.toml").write_text(f'moderation.word_lists = ["{tmp_path / "bad.txt"}"]\n')
    done = cli("serve", "--data-dir", str(tmp_path / "data"), "--config", str(tmp_path / "c.toml"),
               "--port", "0", check=False)  # fmt: skip
    assert done.returncode == 1
    assert "moderation: " in done.stderr
    assert "bad.txt, line 2: " in done.stderr
    assert "line 3: " in done.stderr
