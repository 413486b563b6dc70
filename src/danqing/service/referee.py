"""What of a call is screened before it is paid for, and keeping what was refused of it. Knows calls; no judge and no money."""

from __future__ import annotations

from danqing.domain.errors import ContentRefused, DanqingError
from danqing.domain.task import SafetyLevel
from danqing.service.calls import Call, Work
from danqing.service.references import Inputs
from danqing.service.refusals import Refusals
from danqing.service.screening import Screen


class Referee:
    """Has a call's texts and pictures judged. Whoever is refused is kept with their end user, who can be blocked then."""

    def __init__(self, screen: Screen, refusals: Refusals) -> None:
        self._screen = screen
        self._refusals = refusals

    async def read(self, call: Call) -> tuple[SafetyLevel, ...]:
        """Check what the client wrote. Raises ContentRefused; Unavailable where a judge failed that is needed."""
        task = call.task
        try:
            return await self._screen.texts(
                {"user": (task.prompt, task.negative_prompt), "history": task.history},
                call.principal.block_level,
            )
        except ContentRefused as error:
            await self._note(call, error)
            raise

    async def look_at(self, call: Call, inputs: Inputs) -> tuple[SafetyLevel, ...]:
        """Check the pictures the client sent; they are let go where this raises, as `read` does."""
        found: list[SafetyLevel] = []
        try:
            for picture in inputs.references:
                found += await self._screen.picture(picture.data, call.principal.block_level)
        except BaseException as error:
            inputs.share.release()
            if isinstance(error, ContentRefused):
                await self._note(call, error)
            raise
        return tuple(found)

    async def note_all(self, work: Work, error: DanqingError | None) -> None:
        """Keep who refused what of a drawing, or of its images; once for each."""
        found = [one for one in (error, *work.images.values()) if isinstance(one, ContentRefused)]
        for refused in {(one.source, one.level): one for one in found}.values():
            await self._note(work.call, refused, work.task_id)

    async def _note(self, call: Call, error: ContentRefused, task_id: str | None = None) -> None:
        await self._refusals.note(
            error,
            account_id=call.principal.account_id,
            dialect=call.dialect,
            model=call.card.name,
            end_user=call.task.end_user,
            task_id=task_id,
        )
