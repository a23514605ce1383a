"""What must be true after every pass, whatever went wrong in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from dfagent.repository.config_pbtxt import without_dragonfly
from dfagent.types import ObjectEntry, ObjectRef, TaskIdentity
from tests.soak.schedule import PREFIX, RANGE, Schedule
from tests.soak.world import BUCKET, SECRET, TOKEN, Files, Ran, World, published

MOST_REQUESTS = 40
"""Of one object in one pass, and as many again for each of its ranges."""


@dataclass(frozen=True)
class Violation:
    """`kind` is one word for the table: corrupt, stale, bug, leaked, secret, cache, outside, requests, store."""

    kind: str
    text: str


def after_faults(world: World, plan: Schedule, ran: Ran, before: dict[str, Files]) -> list[Violation]:
    """The whole model of one listing's versions, or an error and the model that was there, byte for byte."""
    found = _general(world, ran)
    now = published(world.base / "models")
    listings = [_models(world, listing, plan) for listing in world.origin.listings]
    for model in sorted({*before, *now, *ran.outcomes}):
        outcome = ran.outcomes.get(model, "failed")
        allowed = [before.get(model)]
        if outcome in ("published", "unchanged"):
            allowed = [models[model] for models in listings if model in models]
        if now.get(model) not in allowed:
            found.append(Violation("corrupt", f"{model} ({outcome}): {_difference(now.get(model), allowed)}"))
    failed = [model for model, outcome in ran.outcomes.items() if outcome == "failed"]
    if not ran.bug and len(ran.result.errors) < len(failed):
        found.append(Violation("bug", f"{failed} failed, but the errors are {ran.result.errors}"))
    return found


def after_recovery(world: World, plan: Schedule, ran: Ran, target: str = "models") -> list[Violation]:
    """The store's newest content, and nothing left over."""
    found = _general(world, ran, target)
    wanted = _models(world, {key: history[-1].etag for key, history in world.origin.versions.items()}, plan)
    now = published(world.base / target)
    if ran.errors or any(now.get(model) != files for model, files in wanted.items()):
        problem = "; ".join(f"{type(exc).__name__}: {exc}" for exc in ran.errors)
        wrong = [f"{model}: {_difference(now.get(model), [files])}" for model, files in wanted.items()]
        kind = "recovery" if ran.errors else "stale"
        found.append(Violation(kind, f"without faults: {problem or 'no error'}; {'; '.join(wrong)}"))
    state = world.base / f".dfagent-{target}"
    left = [path for kind in ("tmp", "staging", "partials") for path in (state / kind).rglob("*") if path.is_file()]
    if left and not ran.errors:
        found.append(Violation("leaked", f"left in the state folder: {[str(p.relative_to(state)) for p in left]}"))
    return found


def damaged_tasks(world: World, plan: Schedule) -> list[str]:
    """The ids of the peer's finished tasks of current versions that have not the store's bytes.

    A file that is longer than its task (see `CachedTask`) only harms where it is linked.
    """
    found = []
    endpoint = world.origin.url.removeprefix("http://")
    for key, history in world.origin.versions.items():
        version = history[-1]
        entry = ObjectEntry(ObjectRef("s3", endpoint, BUCKET, key), len(version.data), version.etag)
        task = world.peer.cache.finished(TaskIdentity.of(entry).id)
        if task and task.data[: task.size if plan.transport == "proxy" else None] != version.data:
            found.append(task.id)
    return found


def _general(world: World, ran: Ran, target: str = "models") -> list[Violation]:
    origin, peer = world.origin, world.peer
    found = [Violation("bug", ran.bug)] if ran.bug else []
    found += [Violation("leaked", leak) for leak in ran.leaks]
    found += [Violation("store", text) for text in origin.violations]
    found += [Violation("secret", f"asked another host for {request.path}") for request in origin.trapped]
    found += [Violation("cache", text) for text in peer.cache.damage()]
    if origin.swallowed or peer.swallowed:
        found.append(Violation("requests", "read an endless body to its end"))
    found += _outside(world, target) + _said(world, ran, target) + _too_many(world)
    found += [Violation("bug", f"error without a hint: {error!r}") for error in ran.errors if not error.message]
    return found


def _outside(world: World, target: str) -> list[Violation]:
    base, names = world.base, {target, f".dfagent-{target}", "models", ".dfagent-models"}
    strange = [path.name for path in base.iterdir() if path.name not in names]
    folder = base / target
    strange += [path.name for path in folder.iterdir() if not path.is_symlink()] if folder.exists() else []
    return [Violation("outside", f"{name} is not dfagent's to make") for name in strange]


def _said(world: World, ran: Ran, target: str) -> list[Violation]:
    text = "\n".join(ran.said) + ran.bug
    state = world.base / f".dfagent-{target}"
    for path in state.rglob("*") if state.exists() else ():
        if path.is_file() and "generations" not in path.parts and "staging" not in path.parts:
            text += path.read_bytes().decode("latin-1")
    secrets = {SECRET, TOKEN, *world.origin.signatures}
    return [Violation("secret", _around(text, secret)) for secret in secrets if secret in text]


def _around(text: str, secret: str) -> str:
    at = text.index(secret)
    return text[max(0, at - 300) : at + 20]


def _too_many(world: World) -> list[Violation]:
    counts = Counter(asked.key for asked in world.origin.asked if asked.op != "list")
    found = []
    for key, count in counts.items():
        history = world.origin.versions.get(key)
        ranges = len(history[-1].data) // RANGE if history else 0
        if count > MOST_REQUESTS * (1 + ranges / 4):
            found.append(Violation("requests", f"{count} requests for {key}, which has {ranges + 1} ranges"))
    return found


def _models(world: World, etags: dict[str, str], plan: Schedule) -> dict[str, Files]:
    """What must be published of a listing."""
    models: dict[str, Files] = {}
    for key, etag in etags.items():
        name, _, path = key.removeprefix(f"{PREFIX}/").partition("/")
        data = world.origin.content(key, etag)
        if path and data is not None:
            models.setdefault(name, {})[path] = _published_config(data) if path == "config.pbtxt" else data
    return {name: files for name, files in models.items() if plan.select_all or "config.pbtxt" in files}


@lru_cache(8)
def _published_config(data: bytes) -> bytes:
    return without_dragonfly(data)


def _difference(now: Files | None, allowed: list[Files | None]) -> str:
    if now is None:
        return "it is not there"
    if not allowed or allowed[-1] is None:
        return f"nothing may be there, but {sorted(now)} is"
    wanted = allowed[-1]
    wrong = [path for path in wanted if path in now and now[path] != wanted[path]]
    missing, more = sorted(set(wanted) - set(now)), sorted(set(now) - set(wanted))
    places = [f"{path} from byte {_first_difference(now[path], wanted[path])}" for path in wrong]
    return f"wrong bytes in {places}, missing {missing}, more {more}"


def _first_difference(one: bytes, other: bytes) -> str:
    at = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f"{at} ({len(one)} and {len(other)} bytes)"
