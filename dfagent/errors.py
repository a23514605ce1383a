"""Every error that dfagent raises on purpose.

    DfagentError(message, hint, retryable)
    ├ ConfigError                 which file, which key, what was expected
    ├ StoreError                  NotFound · AccessDenied · Changed · StoreUnavailable*
    ├ TransportError              ConnectFailed* · Stalled* · Truncated* (DamagedTask*) · Overloaded* · SignedUrlExpired
    │                             · OriginStatus · PeerUnavailable · NoHardLink
    ├ RepositoryError             EmptyRepository · InvalidModelConfig · UnsafePath · NoSpace · FolderInUse
    │                             · DigestMismatch* · InvalidSha256Sums
    ├ TritonError                 TritonUnavailable* · WrongControlMode · LoadRejected · LoadTimeout
    └ PartError                   a real part of the local set-up (demo, tests, benchmarks) is missing or will not start
  (* retryable)

The exit code of the command line belongs to the family (see `exit_code`), so that a script can tell them apart.
"""

from __future__ import annotations


class DfagentError(Exception):
    """An error that a person can act on: `message` says what happened, `hint` what to do next."""

    exit_code = 1
    retryable = False

    def __init__(self, message: str, *, hint: str = "", retryable: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if retryable is not None:
            self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(DfagentError):
    """A settings file, an option or a URL is not what it has to be."""

    exit_code = 2


class StoreError(DfagentError):
    """The object store refused or could not be asked."""

    exit_code = 3


class NotFound(StoreError):
    """The bucket or object does not exist."""


class AccessDenied(StoreError):
    """The store does not accept the credentials, or they lack a right."""


class Changed(StoreError):
    """The object is no longer the version that was listed: list again."""


class StoreUnavailable(StoreError):
    """The store did not answer, or answered that it can't serve now."""

    retryable = True


class StoreBusy(StoreUnavailable):
    """The store asks for fewer requests (429, SlowDown): it will serve later."""


class TransportError(DfagentError):
    """The bytes of one object did not arrive."""

    exit_code = 4


class ConnectFailed(TransportError):
    """Nothing listens there, or it did not accept in time."""

    retryable = True


class Stalled(TransportError):
    """No byte and no sign of life arrived for the whole stall timeout."""

    retryable = True


class Truncated(TransportError):
    """The transfer ended, but its size is not the object's."""

    retryable = True


class DamagedTask(Truncated):
    """What the peer holds as the task is not the object: another size or version, which it would give for ever."""


class Overloaded(TransportError):
    """The peer or the store sheds load (429, RESOURCE_EXHAUSTED); `retry_after` is in seconds where it said so."""

    retryable = True

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class SignedUrlExpired(TransportError):
    """The origin refused the signature (401, 403): sign again once, then it is access denied."""


class OriginStatus(TransportError):
    """The origin answered with an HTTP error; 5xx, 408 (too slow) and 425 (too early) are retryable."""

    def __init__(self, message: str, *, status: int, hint: str = "") -> None:
        super().__init__(message, hint=hint, retryable=status >= 500 or status in (408, 425))
        self.status = status


class PeerUnavailable(TransportError):
    """The Dragonfly peer died or refused for a reason of its own: another transport may do it."""


class NoHardLink(PeerUnavailable):
    """dfdaemon can't link its file into our folder: another mount, or a folder that it does not see."""


class RepositoryError(DfagentError):
    """The model repository, or the folder it is materialised in, is not usable."""

    exit_code = 5


class EmptyRepository(RepositoryError):
    """The listing holds no model, or none that was asked for."""


class InvalidModelConfig(RepositoryError):
    """`config.pbtxt` is not a Triton model configuration."""


class UnsafePath(RepositoryError):
    """A name in the listing, or something in the target folder, would make us write where we must not."""


class NoSpace(RepositoryError):
    """The disk is full."""

    exit_code = 7


class DigestMismatch(RepositoryError):
    """The bytes are not the store's: size right, checksum wrong. Nothing of them is published."""

    retryable = True


class InvalidSha256Sums(RepositoryError):
    """A model's SHA256SUMS is demanded and is missing, malformed, or does not list just the model's files."""


class FolderInUse(RepositoryError):
    """Another dfagent works on this folder."""


class TritonError(DfagentError):
    """Triton could not be asked, or did not take the model."""

    exit_code = 6


class TritonUnavailable(TritonError):
    """Triton does not answer."""

    retryable = True


class WrongControlMode(TritonError):
    """Triton does not run with `--model-control-mode=explicit`, so nobody may load models."""


class LoadRejected(TritonError):
    """Triton refused the model; the message has the first line of Triton's own reason, `reason` the whole text."""

    def __init__(self, message: str, *, hint: str = "", reason: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class LoadTimeout(TritonError):
    """Triton did not finish the load or unload in time."""


class PartError(DfagentError):
    """A real server that the demo, the tests or the benchmarks need is not installed or did not start."""

    exit_code = 8
