"""Direct, cold, remote hit and local hit side by side, by dfdaemon's gRPC and by its proxy, on real parts.

Every pass is what `dfagent prefetch --all` does, into an empty folder; measured is the pass's own `fetch` phase. Each
round has new Dragonfly peers, so cold is cold; rounds are interleaved, and each begins with another transport.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from dfagent.cli.progress import Silent
from dfagent.errors import DfagentError
from dfagent.local.dragonfly import DragonflyCluster, Peer
from dfagent.local.object_store import S3Server
from dfagent.settings.credentials import CloudCredentials
from dfagent.settings.dragonfly import DragonflySettings
from dfagent.settings.files import Settings
from dfagent.wiring import RunOptions, open_session

BUCKET = "models"
SHAPES = ("1x1GiB", "16x64MiB", "200x64KiB")
SHAPE = re.compile(r"([1-9]\d*)x([1-9]\d*)(KiB|MiB|GiB)")
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
MODES = {"direct": ("direct",), "dfdaemon": ("cold", "remote", "local"), "proxy": ("cold", "remote", "local")}


@dataclass(slots=True)
class Row:
    """One line of the table: the seconds of each round, and what Dragonfly said of it."""

    shape: str
    transport: str
    mode: str
    seconds: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Bench:
    """The servers' side of the benchmark, and its results; everything that it writes lies in `folder`."""

    def __init__(self, folder: Path, shapes: Sequence[str], server: S3Server) -> None:
        self.folder = folder
        self.server = server
        self.shapes = list(dict.fromkeys(shapes))
        keys = [(shape, transport, mode) for shape in self.shapes for transport in MODES for mode in MODES[transport]]
        self.rows = {key: Row(*key) for key in keys}

    def upload(self) -> None:
        """Puts a model for each shape into the bucket: random bytes in one version folder."""
        client = self.server.client()
        client.create_bucket(Bucket=BUCKET)
        for shape in self.shapes:
            count, size, unit = SHAPE.findall(shape)[0]
            for number in range(int(count)):
                body = io.BytesIO(os.urandom(int(size) * UNITS[unit]))
                client.upload_fileobj(body, BUCKET, f"{shape}/1/{number:05}.bin")

    def round(self, number: int) -> None:
        """Measures every shape by every transport once."""
        transports = [*MODES][number % len(MODES) :] + [*MODES][: number % len(MODES)]
        for transport in transports:
            if transport == "direct":
                for shape in self.shapes:
                    self._measure(shape, transport, "direct", None)
                continue
            work = self.folder / "dragonfly"
            with DragonflyCluster(work, peers=2) as cluster:
                here, there = cluster.peers
                for shape in self.shapes:
                    for mode, peer in zip(MODES[transport], (here, there, here), strict=True):
                        self._measure(shape, transport, mode, peer)
            shutil.rmtree(work)

    def _measure(self, shape: str, transport: str, mode: str, peer: Peer | None) -> None:
        place = self.folder / "node"
        seconds, said = asyncio.run(self._prefetch(shape, transport, peer, place / "models"))
        shutil.rmtree(place)
        row = self.rows[shape, transport, mode]
        row.seconds.append(seconds)
        row.said.append(said)
        print(f"{shape} {transport} {mode}: {seconds:.3f} s, {said}", file=sys.stderr)

    async def _prefetch(self, shape: str, transport: str, peer: Peer | None, target: Path) -> tuple[float, str]:
        credential = {"key_id": self.server.access_key, "secret_key": self.server.secret_key, "region": "us-east-1"}
        settings = Settings(
            DragonflySettings(socket=peer.socket, proxy=peer.proxy) if peer else DragonflySettings(),
            CloudCredentials.model_validate({"s3": {"": credential}}),
        )
        url = f"s3://{self.server.endpoint}/{BUCKET}/{shape}"
        options = RunOptions((url,), target=target, transport=transport, select_all=True)
        async with open_session(settings, options, Silent()) as session:
            result = await session.run()
        for error in result.errors:
            raise error
        (record,) = result.models
        return record.seconds.fetch, record.source.value if record.source else "-"

    def ratio(self, row: Row) -> float:
        """The row's median to that of the same shape by the direct transport."""
        return row.median / self.rows[row.shape, "direct", "direct"].median


def shape_name(text: str) -> str:
    """The text itself, where it is a shape."""
    if not SHAPE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not COUNTxSIZE, such as 16x64MiB (KiB, MiB, GiB)")
    return text


def table(bench: Bench) -> Table:
    """Medians and ratios, one line a shape, transport and mode."""
    drawn = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("shape", "transport", "mode", "× direct", "median s", "fastest – slowest", "Dragonfly said"):
        drawn.add_column(heading, justify="right" if heading in ("median s", "× direct") else "left", no_wrap=True)
    for row in bench.rows.values():
        spread = f"{min(row.seconds):.3f} – {max(row.seconds):.3f}"
        said = ", ".join(dict.fromkeys(row.said)) if row.transport != "direct" else "-"
        figures = (f"{bench.ratio(row):.2f}", f"{row.median:.3f}", spread)
        drawn.add_row(row.shape, row.transport, row.mode, *figures, said)
    return drawn


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", type=shape_name, metavar="COUNTxSIZE", help=f"default: {' '.join(SHAPES)}")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each is measured (default: 3)")
    parser.add_argument("--folder", type=Path, default=Path("build"), help="where the servers' data goes meanwhile")
    parser.add_argument("--json", action="store_true", help="every figure as JSON instead of the table")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as stack:
            temporary = tempfile.TemporaryDirectory(dir=arguments.folder.resolve(), prefix="modes-")
            folder = Path(stack.enter_context(temporary))
            server = stack.enter_context(S3Server(folder / "s3"))
            bench = Bench(folder, arguments.shapes or SHAPES, server)
            bench.upload()
            for number in range(max(1, arguments.rounds)):
                bench.round(number)
    except DfagentError as exc:
        sys.exit(f"error: {exc}")
    if arguments.json:
        rows = [{**asdict(row), "median": row.median, "times_direct": bench.ratio(row)} for row in bench.rows.values()]
        print(json.dumps(rows, indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(table(bench))


if __name__ == "__main__":
    main()
