"""Every answer and exception of the SDK becomes one typed error with a hint of its own."""

import ssl

import pytest
from botocore import exceptions as sdk

from dfagent.errors import (
    AccessDenied,
    ConfigError,
    DfagentError,
    NotFound,
    StoreBusy,
    StoreError,
    StoreUnavailable,
)
from dfagent.stores.s3_errors import translate, translated

PLACE = "s3://bucket/models"


def answer(code: str, status: int, message: str = "said so") -> sdk.ClientError:
    error = {"Code": code, "Message": message, "StringToSign": "AWS4-HMAC-SHA256 hush", "SignatureProvided": "hush"}
    return sdk.ClientError(
        {"Error": error, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "ListObjectsV2",
    )


@pytest.mark.parametrize(
    ("code", "status", "kind", "hint"),
    [
        ("NoSuchBucket", 404, NotFound, "check the bucket's name"),
        ("NoSuchKey", 404, NotFound, "check the object's key"),
        ("SignatureDoesNotMatch", 403, AccessDenied, "secret_key does not belong"),
        ("InvalidAccessKeyId", 403, AccessDenied, "does not know this key id"),
        ("AccessDenied", 403, AccessDenied, "s3:ListBucket"),
        ("AllAccessDisabled", 403, AccessDenied, "check the credential"),
        ("ExpiredToken", 400, AccessDenied, "has expired"),
        ("InvalidToken", 400, AccessDenied, "session token"),
        ("RequestTimeTooSkewed", 403, AccessDenied, "clock"),
        ("SlowDown", 503, StoreBusy, "overloaded"),
        ("SlowDown", 400, StoreBusy, "overloaded"),
        ("TooManyRequests", 429, StoreBusy, "overloaded"),
        ("InternalError", 500, StoreUnavailable, "try again"),
        ("PermanentRedirect", 301, StoreError, "region"),
        ("AuthorizationHeaderMalformed", 400, StoreError, "region"),
        ("InvalidArgument", 400, StoreError, "code and message"),
    ],
)
def test_answers_are_told_apart(code: str, status: int, kind: type[DfagentError], hint: str) -> None:
    """The store's code and message stay, what stands beside them goes."""
    error = translate(answer(code, status), PLACE)
    assert type(error) is kind
    assert f"{PLACE}: ListObjectsV2 answered {code}: said so" in error.message
    assert hint in error.hint
    assert "hush" not in str(error)


@pytest.mark.parametrize("body", [{}, {"Code": "", "Message": ""}, {"Code": None}])
def test_an_error_without_a_code_is_named_by_its_status(body: dict[str, str]) -> None:
    """A plain web server's 404 page has neither code nor message."""
    response = {"Error": body, "ResponseMetadata": {"HTTPStatusCode": 404}}
    error = translate(sdk.ClientError(response, "ListObjectsV2"), PLACE)  # type: ignore[arg-type]
    assert type(error) is NotFound
    assert error.message == f"{PLACE}: ListObjectsV2 answered 404"


def test_the_stores_message_can_not_drive_a_terminal() -> None:
    """XML carries C1 control characters."""
    assert translate(answer("Odd\x9b", 400, "a\x9b2Jb"), PLACE).message.endswith("answered Odd: a 2Jb")


def test_a_signed_url_in_the_stores_message_is_cut() -> None:
    """Some stores repeat the request."""
    error = translate(answer("AccessDenied", 403, "no https://h/b?X-Amz-Signature=hush\n at all"), PLACE)
    assert "hush" not in str(error)
    assert "no https://h/b?… at all" in error.message


@pytest.mark.parametrize(
    ("raised", "kind", "says"),
    [
        (sdk.NoCredentialsError(), ConfigError, "no S3 credentials found"),
        (sdk.PartialCredentialsError(provider="env", cred_var="secret"), ConfigError, "env"),
        (sdk.ProfileNotFound(profile="p"), ConfigError, "p"),
        (sdk.ParamValidationError(report="Invalid bucket name"), ConfigError, "Invalid bucket name"),
        (sdk.CredentialRetrievalError(provider="process", error_msg="gone"), AccessDenied, "gone"),
        (sdk.UnauthorizedSSOTokenError(), AccessDenied, "SSO"),
        (sdk.EndpointConnectionError(endpoint_url="http://h:1/b?x=hush"), StoreUnavailable, "nothing answers at http://h:1"),
        (sdk.ConnectTimeoutError(endpoint_url="http://h:1/b?x=hush"), StoreUnavailable, "nothing answers at http://h:1"),
        (sdk.ReadTimeoutError(endpoint_url="http://h:1/b?x=hush"), StoreUnavailable, "the connection broke"),
        (sdk.ConnectionClosedError(endpoint_url="http://h:1/b?x=hush"), StoreUnavailable, "the connection broke"),
        (sdk.ProxyConnectionError(proxy_url="http://u:hush@p", error="x"), StoreUnavailable, "HTTP proxy"),
        (sdk.SSLError(endpoint_url="", error=ssl.SSLError("CERTIFICATE_VERIFY_FAILED")), StoreError, "ca_bundle"),
        (sdk.HTTPClientError(error=ssl.SSLError("no start line")), StoreError, "TLS with the store failed"),
        (sdk.DataNotFoundError(data_path="x"), StoreError, "not S3's"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)  # fmt: skip
def test_exceptions_are_told_apart(raised: sdk.BotoCoreError, kind: type[DfagentError], says: str) -> None:
    """Configuration, credentials, network and TLS each have their own type or hint."""
    with pytest.raises(kind) as caught, translated(PLACE):
        raise raised
    assert type(caught.value) is kind
    assert caught.value.__cause__ is raised
    assert says in str(caught.value)
    assert "hush" not in str(caught.value)
