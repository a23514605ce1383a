"""Registers what signs where it is made: in a session's own process, and in each `dfagent` that a test starts."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from tests.secrecy.evidence import the_evidence
from tests.secrecy.register import signatures_in


def after(owner: type, method: str, look: Callable[..., None]) -> Callable[[], None]:
    """Calls `look(self, …)` after each call of the method; returns what undoes it."""
    original = getattr(owner, method)

    @functools.wraps(original)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        look(self, *args, **kwargs)
        return result

    setattr(owner, method, wrapped)
    return lambda: setattr(owner, method, original)


def watch() -> None:
    """Begins to register, without importing an SDK before the program does."""
    from dfagent.local.object_store import S3Server

    after(S3Server, "__init__", lambda server, *_, **__: the_evidence().secret("an S3 server's key", server.secret_key))
    if "botocore.auth" in sys.modules:
        _watch_signers(sys.modules["botocore.auth"])
    else:
        sys.meta_path.insert(0, _OnImport())


class _OnImport(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name != "botocore.auth":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader = spec.loader if spec else None
        assert loader is not None
        execute = loader.exec_module

        def execute_and_watch(module: ModuleType) -> None:
            execute(module)
            _watch_signers(module)

        loader.exec_module = execute_and_watch  # type: ignore[method-assign]
        return spec


def _watch_signers(auth: ModuleType) -> None:
    for signer in {cls for cls in auth.AUTH_TYPE_MAPS.values() if "add_auth" in vars(cls)}:
        after(signer, "add_auth", _signed)
    for signer in {base for cls in auth.AUTH_TYPE_MAPS.values() for base in cls.__mro__[1:]}:
        if "add_auth" in vars(signer) and not hasattr(vars(signer)["add_auth"], "__wrapped__"):
            after(signer, "add_auth", _signed)


def _signed(signer: Any, request: Any, *_: Any, **__: Any) -> None:
    evidence = the_evidence()
    evidence.signatures(signatures_in(str(request.url), str(request.headers.get("Authorization", ""))))
    credentials = getattr(signer, "credentials", None)
    if credentials is not None:
        evidence.secret("a secret key", credentials.secret_key or "")
        evidence.secret("a session token", getattr(credentials, "token", None) or "")
