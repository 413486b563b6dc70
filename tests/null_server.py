"""`python -m tests.null_server serve …`: the real server with a family that draws one colour in no time.

NULL_STEP_S makes each denoising step last that long. NULL_SHUTDOWN_S and NULL_KEEP_ALIVE_S shorten what would
make a test wait. Images carry no pixel mark unless DANQING_LABELS__PIXEL_MARK asks for it: it takes longer than
all else that this server does.
"""

from __future__ import annotations

import os

from danqing import app
from danqing.__main__ import main
from danqing.api import streams
from danqing.cli import serve
from tests.engine.null_family import NullFamily

os.environ.setdefault("DANQING_LABELS__PIXEL_MARK", "false")
STEP_S = float(os.environ.get("NULL_STEP_S", "0"))

app.FAMILY_FACTORY = "tests.engine.null_family:from_environment"
app.load_family = lambda row, settings: NullFamily(step_s=STEP_S)
serve.SHUTDOWN_S = int(os.environ.get("NULL_SHUTDOWN_S", serve.SHUTDOWN_S))
streams.KEEP_ALIVE_S = float(os.environ.get("NULL_KEEP_ALIVE_S", streams.KEEP_ALIVE_S))

if __name__ == "__main__":
    main()
