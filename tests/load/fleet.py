"""Many agent processes on one node: one dfdaemon that sheds load, one store that throttles, every byte checked."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dfagent.local.dragonfly import Peer
from dfagent.local.object_store import REGION, S3Server
from tests.load.plan import Load, data_of
from tests.load.report import Report
from tests.servers import program
from tests.servers.streams import CallCounter
from tests.servers.throttle import ThrottlingGate

CONFIG = b'name: "net"\nbackend: "python"\nmodel_repository_agents { agents [ { name: "dragonfly" } ] }\n'


@dataclass
class Fleet:
    """Agents that all start at once, each with a folder of its own in `folder`, on the mount of the peer's storage."""

    load: Load
    folder: Path
    server: S3Server
    peer: Peer
    bucket: str = "load"
    _records: dict[int, str] = field(default_factory=dict)

    async def carry(self) -> Report:
        """Puts the objects, lets the agents run, and looks at every file."""
        report = Report(self.load)
        await asyncio.to_thread(self._put)
        gate = ThrottlingGate(self.server.port, self.load.rate, self.load.burst)
        # Beside the daemon's own: a unix socket's path must be short.
        counter = CallCounter(self.peer.socket, self.peer.socket.with_suffix(".counted"))
        async with gate, counter:
            settings = self._settings(counter.at)
            started = time.monotonic()
            await asyncio.gather(
                *(
                    self._agent(agent, [f"s3://{gate.endpoint}/{self.bucket}/{agent}", *settings], report, started)
                    for agent in range(self.load.agents)
                )
            )
        report.passed, report.refused, report.calls = gate.passed, gate.refused, counter.calls
        report.askers.update(map(_asker, gate.heads))
        await asyncio.to_thread(self._look, report)
        return report

    def _put(self) -> None:
        client = self.server.client()
        client.create_bucket(Bucket=self.bucket)

        def put(agent: int) -> None:
            client.put_object(Bucket=self.bucket, Key=f"{agent}/net/config.pbtxt", Body=CONFIG)
            for number in range(self.load.of_agent(agent)):
                client.put_object(Bucket=self.bucket, Key=f"{agent}/net/1/{number:04}", Body=data_of(agent, number))

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, range(self.load.agents)))

    def _settings(self, socket: Path) -> list[str]:
        dragonfly, cloud = self.folder / "dragonfly_config.json", self.folder / "cloud_credential.json"
        dragonfly.write_text(json.dumps({"socket": str(socket), "proxy": self.peer.proxy}))
        key = {"key_id": self.server.access_key, "secret_key": self.server.secret_key, "region": REGION}
        cloud.touch(mode=0o600)
        cloud.write_text(json.dumps({"s3": {"": key}}))
        return ["--config", str(dragonfly), "--credentials", str(cloud), "--transport", self.load.transport]

    def _models(self, agent: int) -> Path:
        return self.folder / f"agent-{agent}" / "models"

    async def _agent(self, agent: int, arguments: list[str], report: Report, started: float) -> None:
        running = await program.start("prefetch", *arguments, "--to", str(self._models(agent)), "--json")
        report.alive += 1
        try:
            code = await asyncio.wait_for(_wait(running.process, report), self.load.longest)
        except asyncio.TimeoutError:
            await running.kill()
            code = -signal.SIGKILL
        if code:
            report.failed[agent] = f"{code}: {running.err[-1000:]}"
            return
        report.seconds[agent] = time.monotonic() - started
        self._records[agent] = running.out

    def _look(self, report: Report) -> None:
        """Every file of every agent, and every agent's records."""
        for agent in report.seconds:
            version = self._models(agent) / "net" / "1"
            for number in range(self.load.of_agent(agent)):
                file = version / f"{number:04}"
                if not file.exists() or file.read_bytes() != data_of(agent, number):
                    report.wrong.append(str(file))
            for line in self._records[agent].splitlines():
                record = json.loads(line)
                if record["kind"] == "object":
                    report.objects += 1
                    report.transports[record["transport"]] += 1
                    report.attempts += record["attempts"]
                    report.detours.update(f"{tour['tried']} → {tour['then']}" for tour in record["detours"])


def _asker(head: str) -> str:
    """Who sends such a request: dfdaemon sends no name."""
    name = re.search(r"^user-agent: (\S+)", head, re.IGNORECASE | re.MULTILINE)
    who = name[1].lower() if name else ""
    return "the agents' listing and questions" if "boto" in who else "the agents" if who == "dfagent" else "dfdaemon"


async def _wait(process: asyncio.subprocess.Process, report: Report) -> int:
    """Its exit code; its largest memory is added to the report's."""
    largest = 0.0
    while True:
        try:
            return await asyncio.wait_for(process.wait(), 1.0)
        except asyncio.TimeoutError:
            grown = max(largest, _memory_mib(process.pid))
            report.memory_mib += grown - largest
            largest = grown


def _memory_mib(pid: int) -> float:
    """The largest that the process was; 0 where it is gone."""
    with suppress(OSError):
        if kib := re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()):
            return int(kib[1]) / 1024
    return 0.0
