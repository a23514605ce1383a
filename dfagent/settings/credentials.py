"""`cloud_credential.json`: credentials of object stores, chosen by the longest matching URL prefix."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, field_validator, model_validator

from dfagent.settings.fields import OptionalPath, OptionalSecret, OptionalText
from dfagent.types import RepositoryUrl

_FROZEN = ConfigDict(frozen=True, extra="ignore", hide_input_in_errors=True)
_HOST_AND_PORT = re.compile(r"^s3://(?=[^/]*:\d+(?:/|$))")
_ENDPOINT = re.compile(r"^s3://https?://[^/]+")
_Value = TypeVar("_Value")


class S3Credential(BaseModel):
    """One entry of the `s3` section; "" means unset, and what is unset is left to the SDK's own chain.

    As in Triton, `profile` counts only where no key is given. `addressing` auto is path style at a custom endpoint and
    virtual-hosted style at AWS; `ca_bundle` is a PEM file to trust instead of the system's.
    """

    model_config = _FROZEN

    secret_key: OptionalSecret = None
    key_id: OptionalText = None
    region: OptionalText = None
    session_token: OptionalSecret = None
    profile: OptionalText = None
    addressing: Annotated[
        Literal["auto", "path", "virtual"], BeforeValidator(lambda value: "auto" if value == "" else value)
    ] = "auto"
    anonymous: bool = Field(default=False, strict=True)
    ca_bundle: OptionalPath = None

    @field_validator("key_id", "secret_key", "session_token")
    @classmethod
    def _check_characters(cls, value: str | SecretStr | None) -> str | SecretStr | None:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value or ""
        if not text.isprintable() or " " in text:
            raise ValueError("holds a space, a line break or a control character")
        return value

    @model_validator(mode="after")
    def _check_keys(self) -> S3Credential:
        if (self.key_id is None) != (self.secret_key is None):
            missing = "secret_key" if self.key_id else "key_id"
            raise ValueError(f"key_id and secret_key go together, {missing} is missing")
        if self.session_token and not self.key_id:
            raise ValueError("session_token needs key_id and secret_key")
        if self.anonymous and (self.key_id or self.profile):
            raise ValueError("anonymous excludes key_id and profile")
        return self


class AzureCredential(BaseModel):
    """One entry of the `as` section; "" means unset."""

    model_config = _FROZEN

    account_str: OptionalSecret = None
    account_key: OptionalSecret = None


class CloudCredentials(BaseModel):
    """The validated content of `cloud_credential.json`: sections of URL prefix → credential."""

    model_config = _FROZEN

    gs: dict[str, str] = Field(default_factory=dict)
    s3: dict[str, S3Credential] = Field(default_factory=dict)
    as_: dict[str, AzureCredential] = Field(default_factory=dict, alias="as")

    @field_validator("gs", "s3", "as_")
    @classmethod
    def _check_prefixes(cls, section: dict[str, _Value], info: Any) -> dict[str, _Value]:
        scheme = f"{info.field_name.rstrip('_')}://"
        by_place: dict[str, int] = {}
        # By their numbers only: what stands where a prefix must be may be a secret.
        for number, prefix in enumerate(section, start=1):
            if prefix and not prefix.startswith(scheme):
                expected = f'expected "" or a prefix that begins with {scheme}'
                raise ValueError(f"entry number {number} can match no URL, {expected}")
            other = by_place.setdefault(_canonical(prefix), number)
            if other != number:
                raise ValueError(f"entries number {other} and {number} name the same place")
        return section

    def s3_for(self, url: RepositoryUrl | str) -> S3Credential | None:
        """The credential for an S3 URL: the longest prefix that ends at a `/` boundary, "" for all the rest.

        None means that the file says nothing about this URL, so the SDK's own chain decides.
        """
        return _longest_match(self.s3.items(), str(url))


def _longest_match(section: Iterable[tuple[str, _Value]], url: str) -> _Value | None:
    place = _canonical(url) + "/"
    matches = [(len(prefix), value) for prefix, value in _canonical_items(section) if place.startswith(prefix)]
    return max(matches, key=lambda match: match[0])[1] if matches else None


def _canonical_items(section: Iterable[tuple[str, _Value]]) -> Iterable[tuple[str, _Value]]:
    for prefix, value in section:
        yield (_canonical(prefix) + "/" if prefix else ""), value


def _canonical(url: str) -> str:
    # `s3://HOST:port/…` and `s3://http://host:port/…` name the same endpoint, so they must match the same credential.
    with_scheme = _HOST_AND_PORT.sub("s3://http://", url.rstrip("/"))
    return _ENDPOINT.sub(lambda endpoint: endpoint[0].lower(), with_scheme)
