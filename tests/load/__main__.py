"""Many agents, one dfdaemon, a store that throttles: `python -m tests.load [--agents 64] [--objects 5000]`.

Needs room for twice the objects' bytes (half of them are 4 MiB each: 21 GB for 5,000), and about 100 MiB of memory an
agent. Ends with 1 where a bound does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from dfagent.local.dragonfly import DragonflyCluster
from dfagent.local.object_store import S3Server
from tests.load.fleet import Fleet
from tests.load.plan import Load
from tests.secrecy.child import watch
from tests.secrecy.evidence import end, the_evidence


def main() -> int:
    watch()
    usual = Load()
    parser = argparse.ArgumentParser(description="Many agents, one dfdaemon, a store that throttles.")
    parser.add_argument("--agents", type=int, default=usual.agents)
    parser.add_argument("--objects", type=int, default=usual.objects)
    parser.add_argument("--rate", type=float, default=usual.rate, help="requests a second that the store takes")
    parser.add_argument("--burst", type=float, default=usual.burst, help="requests at once after a quiet time")
    parser.add_argument("--transport", default=usual.transport, choices=["auto", "direct", "proxy", "dfdaemon"])
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures, as JSON")
    arguments = parser.parse_args()
    load = Load(arguments.agents, arguments.objects, arguments.rate, arguments.burst, transport=arguments.transport)
    with tempfile.TemporaryDirectory(prefix="dfagent-load-", dir=arguments.folder) as name:
        folder = Path(name)
        with S3Server(folder / "s3") as server, DragonflyCluster(folder / "dragonfly", peers=1) as cluster:
            report = asyncio.run(Fleet(load, folder, server, cluster.peers[0]).carry())
    secrets = the_evidence().search()
    end()
    print(report.text())
    if arguments.json:
        arguments.json.write_text(json.dumps(report.document(), indent=1))
    broken = [*report.broken(), *map(str, secrets)]
    for what in broken:
        print(f"BROKEN: {what}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
