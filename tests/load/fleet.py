"""Many agent processes on one node: one dfdaemon that sheds load, one store that throttles, every byte checked."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dfagent.local.dragonfly import DragonflyCluster, Peer
from dfagent.local.object_store import S3Server
from dfagent.local.process import clean_environment
from tests.servers.throttle import ThrottlingGate

START = "from dfagent.cli import main; main()"
BUCKET = "load"
LARGE = (4 << 20) + (1 << 10)
"""Just above what Dragonfly never shares."""
SMALL = 16 << 10
CONFIG = b'name: "net"\nbackend: "python"\nmodel_repository_agents { agents [ { name: "dragonfly" } ] }\n'
_REQUESTS = re.compile(r"^dragonfly_client_(\w+?)_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Load:
    """`rate`: requests a second that the store takes; above it, it answers 503. Seconds for `longest`."""

    agents: int = 64
    objects: int = 5000
    rate: float = 400.0
    burst: float = 100.0
    longest: float = 900.0
    transport: str = "auto"

    @property
    def of_one_agent(self) -> int:
        """Objects a model, its configuration aside; half of them large."""
        return max(2, self.objects // self.agents)


@dataclass
class Report:
    """What became of it; seconds from the common start."""

    load: Load
    seconds: dict[int, float] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    transports: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    detours: Counter[str] = field(default_factory=Counter)
    objects: int = 0
    passed: int = 0
    refused: int = 0
    peer_requests: dict[str, int] = field(default_factory=dict)
    memory_mib: float = 0.0

    def text(self) -> str:
        done = sorted(self.seconds.values())
        spread = f"{done[0]:.1f} / {statistics.median(done):.1f} / {done[-1]:.1f} s" if done else "none finished"
        rows = {
            "agents, objects": f"{self.load.agents}, {self.objects}",
            "finished, failed, wrong": f"{len(self.seconds)}, {len(self.failed)}, {len(self.wrong)}",
            "first / median / last": spread,
            "objects by transport": dict(self.transports.most_common()),
            "attempts an object": f"{self.attempts / max(1, self.objects):.2f}",
            "detours": dict(self.detours.most_common(5)),
            "store: passed, refused": f"{self.passed}, {self.refused}"
            f" ({self.passed / max(1, self.objects):.2f}, {self.refused / max(1, self.objects):.2f} an object)",
            "dfdaemon": self.peer_requests,
            "agents' memory, all": f"{self.memory_mib:.0f} MiB",
        }
        return "\n".join(f"{name:26} {value}" for name, value in rows.items())


def data_of(agent: int, number: int) -> bytes:
    """An object's bytes: cheap to make, and no two objects alike."""
    size = LARGE if number % 2 else SMALL
    line = f"agent {agent} object {number} ".encode()
    return (line * (size // len(line) + 1))[:size]


async def carry(load: Load, folder: Path, server: S3Server, peer: Peer) -> Report:
    """Puts the objects, lets all agents run at once, and looks at every file."""
    report = Report(load)
    await asyncio.to_thread(_put, server, load)
    before = _peer_requests(peer)
    gate = ThrottlingGate(server.port, load.rate, load.burst)
    async with gate:
        settings = _settings(folder, server, peer)
        started = time.monotonic()
        runs = [_run(load, agent, folder, gate.endpoint, settings, report, started) for agent in range(load.agents)]
        await asyncio.gather(*runs)
        report.passed, report.refused = gate.passed, gate.refused
    report.peer_requests = {
        name: round(value - before.get(name, 0)) for name, value in _peer_requests(peer).items() if value
    }
    await asyncio.to_thread(_look, report, folder)
    return report


def _put(server: S3Server, load: Load) -> None:
    client = server.client()
    client.create_bucket(Bucket=BUCKET)

    def put(agent: int) -> None:
        client.put_object(Bucket=BUCKET, Key=f"{agent}/net/config.pbtxt", Body=CONFIG)
        for number in range(load.of_one_agent):
            client.put_object(Bucket=BUCKET, Key=f"{agent}/net/1/{number:04}", Body=data_of(agent, number))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(load.agents)))


def _settings(folder: Path, server: S3Server, peer: Peer) -> list[str]:
    dragonfly, cloud = folder / "dragonfly_config.json", folder / "cloud_credential.json"
    dragonfly.write_text(json.dumps({"socket": str(peer.socket), "proxy": peer.proxy}))
    key = {"key_id": server.access_key, "secret_key": server.secret_key, "region": "us-east-1"}
    cloud.touch(mode=0o600)
    cloud.write_text(json.dumps({"s3": {"": key}}))
    return ["--config", str(dragonfly), "--credentials", str(cloud)]


async def _run(
    load: Load, agent: int, folder: Path, endpoint: str, settings: list[str], report: Report, started: float
) -> None:
    url, target = f"s3://{endpoint}/{BUCKET}/{agent}", folder / f"agent-{agent}" / "models"
    command = [sys.executable, "-c", START, "prefetch", url, "--to", str(target), "--json", *settings]
    environment = {**clean_environment(), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with _files(folder / f"agent-{agent}.out") as (out, err):
        process = await asyncio.create_subprocess_exec(
            *command, "--transport", load.transport, stdout=out, stderr=err, env=environment
        )
        try:
            code = await asyncio.wait_for(_wait(process, report), load.longest)
        except asyncio.TimeoutError:
            process.kill()
            code = await process.wait()
    if code:
        report.failed[agent] = f"{code}: {(folder / f'agent-{agent}.err').read_text()[-1000:]}"
    else:
        report.seconds[agent] = time.monotonic() - started


async def _wait(process: asyncio.subprocess.Process, report: Report) -> int:
    """Its exit code; its largest memory is added to the report's."""
    largest = 0
    while True:
        try:
            return await asyncio.wait_for(process.wait(), 1.0)
        except asyncio.TimeoutError:
            kib = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
            grown = max(largest, int(kib[1]) if kib else 0)
            report.memory_mib += (grown - largest) / 1024
            largest = grown


@contextmanager
def _files(out: Path) -> Iterator[tuple[int, int]]:
    with out.open("wb") as first, out.with_suffix(".err").open("wb") as second:
        yield first.fileno(), second.fileno()


def _look(report: Report, folder: Path) -> None:
    """Every file of every agent, and every agent's records."""
    for agent in report.seconds:
        model = folder / f"agent-{agent}" / "models" / "net" / "1"
        for number in range(report.load.of_one_agent):
            file = model / f"{number:04}"
            if not file.exists() or file.read_bytes() != data_of(agent, number):
                report.wrong.append(str(file))
        for line in (folder / f"agent-{agent}.out").read_text().splitlines():
            record = json.loads(line)
            if record["kind"] == "object":
                report.objects += 1
                report.transports[record["transport"]] += 1
                report.attempts += record["attempts"]
                report.detours.update(f"{tour['tried']} → {tour['then']}" for tour in record["detours"])


def _peer_requests(peer: Peer) -> dict[str, float]:
    """dfdaemon's own counters of what it was asked for and of what it asked the store."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(peer.metrics_url, timeout=10) as answer:
        text = answer.read().decode()
    found: Counter[str] = Counter()
    for name, value in _REQUESTS.findall(text):
        found[name] += float(value)  # type: ignore[assignment]
    return {name: value for name, value in found.items() if "request" in name or "task" in name}


def main() -> int:
    parser = argparse.ArgumentParser(description="Many agents, one dfdaemon, a store that throttles.")
    parser.add_argument("--agents", type=int, default=64)
    parser.add_argument("--objects", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=400.0, help="requests a second that the store takes")
    parser.add_argument("--transport", default="auto", choices=["auto", "direct", "proxy", "dfdaemon"])
    parser.add_argument("--folder", type=Path, help="where to work (needs about 2.2 × the objects' bytes)")
    arguments = parser.parse_args()
    load = Load(arguments.agents, arguments.objects, arguments.rate, transport=arguments.transport)
    with tempfile.TemporaryDirectory(prefix="dfagent-load-", dir=arguments.folder) as name:
        folder = Path(name)
        with S3Server(folder / "s3") as server, DragonflyCluster(folder / "dragonfly", peers=1) as cluster:
            report = asyncio.run(carry(load, folder, server, cluster.peers[0]))
    print(report.text())
    for agent, why in list(report.failed.items())[:5]:
        print(f"agent {agent} failed with {why}")
    return 1 if report.failed or report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
