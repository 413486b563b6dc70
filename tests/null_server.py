"""`python -m tests.null_server serve …`: the real server with a family that draws one colour in no time.

NULL_STEP_S makes each denoising step last that long, NULL_INSPECT_S each inspection, of which no more than two wait then.
NULL_SHUTDOWN_S, NULL_KEEP_ALIVE_S and NULL_DRAIN_S shorten what would make a test wait, and what is known of a token is
known for half a second, or NULL_FACTS_S. Images carry no pixel mark unless DANQING_LABELS__PIXEL_MARK asks for it, and passwords are
hashed by the least work that argon2 does: either takes longer than all else that this server does.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

from argon2 import PasswordHasher

from danqing import app
from danqing.__main__ import main
from danqing.api import requests, streams
from danqing.cli import serve
from danqing.service import auth, inspection, passwords
from tests.engine.null_family import NullFamily

os.environ.setdefault("DANQING_LABELS__PIXEL_MARK", "false")
INSPECT_S = float(os.environ.get("NULL_INSPECT_S", "0"))
STEP_S = float(os.environ.get("NULL_STEP_S", "0"))

app.FAMILY_FACTORY = "tests.engine.null_family:from_environment"
app.load_family = lambda row, settings: NullFamily(step_s=STEP_S)
passwords.PasswordHasher = partial(PasswordHasher, time_cost=1, memory_cost=64, parallelism=1)
auth._FACTS_TTL_S = float(os.environ.get("NULL_FACTS_S", "0.5"))
requests.DRAIN_S_MAX = float(os.environ.get("NULL_DRAIN_S", requests.DRAIN_S_MAX))
serve.SHUTDOWN_S = int(os.environ.get("NULL_SHUTDOWN_S", serve.SHUTDOWN_S))
streams.KEEP_ALIVE_S = float(os.environ.get("NULL_KEEP_ALIVE_S", streams.KEEP_ALIVE_S))

if INSPECT_S:
    plainly = inspection.Inspector.inspect

    def slowly(*args: Any, **options: Any) -> inspection.Inspection:
        time.sleep(INSPECT_S)
        return plainly(*args, **options)

    inspection.Inspector.inspect = slowly
    inspection.WAITING_MAX = 2

if __name__ == "__main__":
    main()
