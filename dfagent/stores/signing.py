"""Which query parameters belong to a store's signature, so never to an object's identity.

Dragonfly compares names case-sensitively, so a name that stores spell in two ways stands here in both.
"""

from __future__ import annotations

from collections.abc import Mapping

_S3_V4 = (
    "X-Amz-Algorithm",
    "X-Amz-Credential",
    "X-Amz-Date",
    "X-Amz-Expires",
    "X-Amz-SignedHeaders",
    "X-Amz-Signature",
    "X-Amz-Security-Token",
    "X-Amz-User-Agent",
    "X-Amz-Content-Sha256",
    "X-Amz-Checksum-Mode",
    "x-amz-checksum-mode",
    "x-id",
)
_S3_V2 = ("AWSAccessKeyId", "Expires", "Signature", "x-amz-security-token")

SIGNING_PARAMS: Mapping[str, tuple[str, ...]] = {"s3": _S3_V4 + _S3_V2}
