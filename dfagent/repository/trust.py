"""Which files on disk are taken for a version's bytes: those that the ledger vouches for, or that agree when read.

| what is known of the version | what happens to a file of the right size |
|---|---|
| this very file was verified, and has not changed since | trusted |
| the store's checksum (of our own files: their sha256) | read once, and remembered if it agrees |
| that the store has no checksum of it | not trusted: fetched again |
| nothing at all | trusted for now (`Trust.UNPROVEN`) |

The last row is a generation of the dfagent that had no ledger, or one whose ledger was lost: nothing is fetched again
for that. Whoever can ask the store does so, says what it answered (`RepositoryFolder.settle`), and looks again: from
then on one of the other rows holds.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

from dfagent.checksums import checksum_of_file
from dfagent.repository.disk import plain_file, sync_file
from dfagent.repository.ledger import Ledger
from dfagent.repository.manifest import ManifestFile
from dfagent.types import Checksum, file_identity


class Trust(Enum):
    """What a file on disk is worth."""

    VERIFIED = "verified"
    UNPROVEN = "unproven"
    REFUSED = "refused"


def trust(root: Path, file: ManifestFile, ledger: Ledger) -> Trust:
    """What the file below `root` is worth; it is read where only its bytes can tell, so call it off the event loop."""
    found = plain_file(root, file.path)
    if found is None or found.st_size != file.size:
        return Trust.REFUSED
    if ledger.verified(file.version, found):
        return Trust.VERIFIED
    checksum = known_checksum(file, ledger)
    if checksum is None:
        return Trust.REFUSED if ledger.knows(file.version) else Trust.UNPROVEN
    if not agrees(root, file, checksum, found):
        return Trust.REFUSED
    # Synced, so that it is not read again after each boot.
    sync_file(root / file.path)
    ledger.remember(file.version, found, checksum, synced=True)
    return Trust.VERIFIED


def known_checksum(file: ManifestFile, ledger: Ledger) -> Checksum | None:
    """What the file's bytes are known to have, without asking anybody."""
    return file.own_checksum or ledger.checksum(file.version)


def agrees(root: Path, file: ManifestFile, checksum: Checksum, found: os.stat_result) -> bool:
    """Whether the bytes have the checksum, and the file is still the one that was `found` when they were read."""
    try:
        same = checksum_of_file(root / file.path, checksum) == checksum
    except OSError:
        return False
    after = plain_file(root, file.path)
    return same and after is not None and file_identity(after) == file_identity(found)
