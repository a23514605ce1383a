"""A gate that lets so many requests a second through and answers the rest as a busy S3 does."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.servers.canned import http_answer
from tests.servers.gate import Gate

BUSY = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


class ThrottlingGate(Gate):
    """Lets `rate` requests a second through, and at most `burst` at once after a quiet time.

    The others get a 503 with Retry-After: 1. `passed` and `refused` count both.
    """

    def __init__(
        self, upstream_port: int, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(upstream_port)
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens, self._at = burst, clock()
        self.passed = self.refused = 0

    def refusal(self, head: str) -> bytes:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens >= 1:
            self._tokens -= 1
            self.passed += 1
            return b""
        self.refused += 1
        body = b"" if head.startswith("HEAD ") else BUSY
        return http_answer(503, body, Retry_After="1", Content_Type="application/xml")
