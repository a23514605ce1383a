"""What every transport is told once, when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dfagent.errors import PeerUnavailable
from dfagent.types import FetchRequest, SignedUrl


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. There is no total: a big file may take hours, but never a minute without a byte."""

    connect: float = 10.0
    stall: float = 60.0


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """How requests present themselves to Dragonfly and to the origin (`dragonfly_config.json`)."""

    headers: Mapping[str, str] = field(default_factory=dict)
    filtered_params: tuple[str, ...] = ()
    tag: str = ""
    application: str = ""
    priority: int | None = None
    piece_length: int | None = None

    def filters_for(self, signed: SignedUrl) -> list[str]:
        """The user's filters, then what belongs to the signature whether the user listed it or not."""
        return list(dict.fromkeys((*self.filtered_params, *signed.signing_params)))

    def origin_headers(self, request: FetchRequest, signed: SignedUrl) -> dict[str, str]:
        """Headers for the origin: the user's own, what the signature covers, and the pin to the listed version.

        Ours are not for the user to set, in whatever letters: two pins are none.
        """
        fixed = {**signed.headers, **request.entry.pin_headers}
        ours = {"range", *(name.lower() for name in fixed)}
        own = {
            name: value for name, value in self.headers.items() if not _is_dragonfly(name) and name.lower() not in ours
        }
        return {**own, **fixed}

    def dragonfly_headers(self) -> dict[str, str]:
        """Those of the user's headers that speak to Dragonfly."""
        return {name: value for name, value in self.headers.items() if _is_dragonfly(name)}


def _is_dragonfly(header: str) -> bool:
    return header.lower().startswith("x-dragonfly-")


def check_task_id(request: FetchRequest, task_id: str) -> None:
    """Refuses a peer that names the task otherwise: its cache would not know an overwritten object from the old one."""
    if task_id != request.task.id:
        said = f"as task {task_id[:12]}, not by its version" if task_id else "without a task id"
        raise PeerUnavailable(
            f"{request.label}: the peer answered {said}",
            hint="it is not a dfdaemon, or one that knows no X-Dragonfly-Content-For-Calculating-Task-ID: update it",
        )
