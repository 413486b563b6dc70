"""Whose a provider's refusal of a field is: the caller's where they said it, else this server's; and what becomes of the key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from danqing.domain import errors
from danqing.domain.card import Preset
from danqing.domain.ports import DrawOrder
from danqing.domain.sizes import Size
from danqing.domain.task import Failed
from danqing.providers.upstream import Untaken
from tests.net.servers import run
from tests.providers.provider_server import Bench, bench, error, inline, says

DEFAULT = Size(1024, 1024)  # of the bench's card


async def failure(far: Bench, **changes: Any) -> errors.DanqingError:
    try:
        events = await far.draw(**changes)
    except Untaken as untaken:
        return untaken.error
    (found,) = [event.error for event in events if isinstance(event, Failed)]
    return found


@pytest.mark.parametrize(
    ("field", "row", "asked"),
    [
        ("output_format", {"extras": ["output_format"]}, {}),
        ("output_compression", {"extras": ["output_format"]}, {}),
        ("seed", {"extras": ["seed"]}, {}),
        ("quality", {}, {}),
        ("quality", {"qualities": {"hd": "high"}}, {"quality": "hd"}),
        ("n", {}, {}),
        ("size", {}, {"size": DEFAULT}),
        ("style", {"extras": ["style"]}, {}),
        ("watermark", {"extras": ["watermark"]}, {}),
    ],
)
@pytest.mark.parametrize("code", ["unknown_parameter", "invalid_value"])
def test_what_the_caller_did_not_say_is_not_their_fault(
    code: str, field: str, row: Any, asked: Any
) -> None:
    async def test() -> None:
        refusal = error(400, code, param=field, message=f"No '{field}'.")
        async with bench(refusal, **row) as far:
            found = await failure(far, **asked)
            assert type(found) is errors.ProviderFailed
            assert f"'{field}'" not in found.message
            assert far.relay.health()["keys_usable"] == 1

    with capture_logs() as logged:
        run(test)
    ours = [line for line in logged if line["event"] == "provider_refuses_our_field"]
    assert [(line["backend"], line["field"]) for line in ours] == [("far", field)]


@pytest.mark.parametrize(
    ("field", "row", "asked"),
    [
        ("prompt", {}, {}),
        ("image", {}, {}),  # it may be the one that is missing
        ("seed", {"extras": ["seed"]}, {"seed": 3}),
        ("quality", {}, {"quality": "hd"}),
        ("size", {}, {}),  # the bench asks for one that is not the default
        ("n", {}, {"n": 2}),
        ("style", {"extras": ["style"]}, {"style": "vivid"}),
        ("negative_prompt", {"extras": ["negative_prompt"]}, {"negative_prompt": "rain"}),
        ("user", {}, {"end_user": "somebody"}),
    ],
)
def test_what_the_caller_said_is_theirs_to_mend(field: str, row: Any, asked: Any) -> None:
    async def test() -> None:
        async with bench(error(400, "invalid_value", param=field), **row) as far:
            events = await far.draw(**asked)
            found = [event.error for event in events if isinstance(event, Failed)]
            assert {type(one) for one in found} == {errors.InvalidField}
            assert {getattr(one, "param", None) for one in found} == {field}

    run(test)


def test_a_size_that_was_chosen_here_is_not_the_callers() -> None:
    async def test() -> None:
        async with bench(error(400, "invalid_value", param="size")) as far:
            order: DrawOrder = replace(far.order(), is_fitted=True)
            with pytest.raises(Untaken) as untaken:
                async for _ in far.relay.draw(order):
                    pass
            assert type(untaken.value.error) is errors.ProviderFailed

    run(test)


def test_an_image_that_fails_for_our_field_is_not_the_callers_fault() -> None:
    async def test() -> None:
        fault = {"error": {"message": "no", "code": "invalid_value", "param": "output_format"}}
        async with bench(says({"data": [fault]}), extras=["output_format"]) as far:
            assert type(await failure(far)) is errors.ProviderFailed

    run(test)


ARK = {"dialect": "ark", "labels": "provider"}
ARK_REFUSAL = {
    "code": "AccessDenied",
    "message": "'watermark' may be false only for accounts that have signed the label waiver. "
    "Request id: 0217",
    "param": "watermark",
    "type": "Forbidden",
}
ZHIPU_REFUSAL = {"code": "1220", "message": "'watermark_enabled' may be false only for others."}
OPENAI_REFUSAL = {
    "code": "waiver_required",
    "message": "'watermark' may be false only for others.",
    "param": "watermark",
    "type": "invalid_request_error",
}


@pytest.mark.parametrize(
    ("row", "status", "refusal"),
    [
        (ARK, 403, ARK_REFUSAL),
        (ARK, 403, ARK_REFUSAL | {"param": ""}),
        (ARK, 400, ARK_REFUSAL | {"code": "InvalidParameter"}),
        ({"dialect": "zhipu", "extras": ["watermark_enabled"]}, 434, ZHIPU_REFUSAL),
        ({"dialect": "openai", "extras": ["watermark"]}, 403, OPENAI_REFUSAL),
    ],
)
@pytest.mark.parametrize("switch", ["watermark", "watermark_enabled"])
def test_a_label_that_may_not_go_is_no_matter_of_the_key(
    row: dict[str, Any], status: int, refusal: dict[str, str], switch: str
) -> None:
    """The caller asked for it, and hears what to leave out by their own name for it; the key works on."""

    async def test() -> None:
        backend = {"dialect": row["dialect"], "labels": "provider"}
        row["labels"] = "provider"
        async with bench(
            says({"error": refusal}, status), inline(1), backend=backend, **row
        ) as far:
            order = replace(far.order(ai_label=False), label_switch=switch)
            events = [event async for event in far.relay.draw(order)]  # raises no Untaken
            (found,) = [event.error for event in events if isinstance(event, Failed)]
            assert type(found) is errors.WaiverRequired
            assert found.param == switch
            assert found.message == (
                "The provider of this model leaves its AI label off only for accounts that it "
                f"permits to: do not set '{switch}' to false."
            )
            assert far.relay.health()["keys_usable"] == 1
            assert len(far.provider.posts) == 1

    run(test)


def test_a_label_that_we_wanted_off_is_our_own_matter() -> None:
    """labels = "ours": the relay itself asks for none. The key works on, and a fallback may be asked."""

    async def test() -> None:
        refusal = says({"error": ARK_REFUSAL}, 403)
        async with bench(refusal, backend={"dialect": "ark"}, dialect="ark") as far:
            with pytest.raises(Untaken) as untaken:
                await far.draw()
            assert type(untaken.value.error) is errors.ProviderFailed
            assert far.relay.health()["keys_usable"] == 1

    run(test)


@pytest.mark.parametrize("message", ["Not you.", "The watermarked account has no permission."])
def test_no_permission_for_anything_else_rests_the_key(message: str) -> None:
    async def test() -> None:
        refusal = says({"error": {"code": "AccessDenied", "message": message, "param": ""}}, 403)
        async with bench(refusal, backend={"dialect": "ark"}, dialect="ark") as far:
            found = await failure(far)
            assert found.message == "The provider does not let this server in."
            assert far.relay.health()["keys_usable"] == 0

    run(test)


def test_a_card_whose_default_quality_is_not_known_there() -> None:
    """Saying the default again changes nothing: it is the operator's card that is wrong."""

    async def test() -> None:
        async with bench(error(400, "invalid_value", param="quality")) as far:
            far.card = replace(
                far.card, qualities={"standard": Preset(1, 0.0)}, quality_default="standard"
            )
            assert type(await failure(far)) is errors.ProviderFailed

    run(test)
