"""API keys: who may use the service, until when, and how much. The server holds hashes, and never a key.

The file is TOML, with a table for each key:

    [alice]
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    expires = 2027-06-30
    jobs_per_minute = 60
    max_jobs = 4
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import secrets
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ....errors import InputError
from .errors import HTTPError

_PREFIX = "calo-"


@dataclass(frozen=True, kw_only=True)
class Key:
    """An API key.

    Attributes:
        name: Whose key it is; jobs and files belong to this name.
        sha256: The SHA-256 of the key, in hexadecimal digits.
        expires: The day or time (UTC) from which the key is refused.
        jobs_per_minute: The largest number of jobs in a minute.
        max_jobs: The largest number of jobs that wait or run.
        max_priority: The highest priority of a job.
    """

    name: str
    sha256: str
    expires: datetime.date | datetime.datetime | None = None
    jobs_per_minute: float | None = None
    max_jobs: int | None = None
    max_priority: int = 0

    @property
    def has_expired(self) -> bool:
        """Whether the key is refused now."""
        if self.expires is None:
            return False
        ends = self.expires
        if not isinstance(ends, datetime.datetime):
            ends = datetime.datetime(ends.year, ends.month, ends.day)
        ends = ends if ends.tzinfo else ends.replace(tzinfo=datetime.UTC)
        return datetime.datetime.now(datetime.UTC) >= ends


class Keys:
    """The keys of a service."""

    def __init__(self, keys: tuple[Key, ...]) -> None:
        self._keys = keys

    @classmethod
    def read(cls, path: Path | None) -> Keys | None:
        """Read a key file; None for no file. Raises `InputError` if the file is missing or invalid."""
        if path is None:
            return None
        try:
            tables = tomllib.loads(path.expanduser().read_text())
            return cls(tuple(_key(name, table) for name, table in tables.items()))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError, ValueError) as error:
            raise InputError(f"cannot read the key file {path}: {error}.", argument="key_file", got=str(path)) from None

    def check(self, authorization: str | None) -> Key:
        """Return the key of an `Authorization` header: Bearer, or Basic with the key as the password.

        Raises:
            HTTPError: 401; there is no key, or it is unknown, or it has expired.
        """
        digest = hashlib.sha256(_secret_of(authorization or "").encode()).hexdigest()
        matches = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]  # compares with all
        if matches and not matches[0].has_expired:
            return matches[0]
        reason = "the API key has expired" if matches else "the API key is missing or unknown"
        headers = {"WWW-Authenticate": 'Bearer realm="calotype"'}
        message = f"{reason}. Pass Authorization: Bearer KEY."
        raise HTTPError(message, status=401, code="invalid_api_key", headers=headers)


class Rate:
    """A limit of events by a token bucket, which fills in a minute."""

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._tokens, self._at = max(per_minute, 1.0), time.monotonic()

    def take(self) -> float:
        """Count an event and return 0, or return the seconds until the next one is allowed."""
        now = time.monotonic()
        filled = self._tokens + (now - self._at) * self._per_minute / 60
        self._tokens, self._at = min(max(self._per_minute, 1.0), filled), now
        if self._tokens < 1:
            return (1 - self._tokens) * 60 / self._per_minute
        self._tokens -= 1
        return 0.0


def new_key(name: str) -> tuple[str, str]:
    """Return a new key, and its table for a key file."""
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, f'[{name}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'


def _key(name: str, table: Mapping[str, Any]) -> Key:
    if unknown := table.keys() - {field.name for field in fields(Key)} | (table.keys() & {"name"}):
        raise ValueError(f"[{name}] has an unknown field {min(unknown)}")
    key = Key(name=name, **{**table, "sha256": str(table.get("sha256", "")).lower()})
    if len(bytes.fromhex(key.sha256)) != hashlib.sha256().digest_size:
        raise ValueError(f"sha256 of [{name}] must have 64 hexadecimal digits")
    if key.expires is not None and not isinstance(key.expires, datetime.date):
        raise ValueError(f"expires of [{name}] must be a date, such as 2027-06-30, without quotation marks")
    if any(number is not None and not number > 0 for number in (key.jobs_per_minute, key.max_jobs)):
        raise ValueError(f"the limits of [{name}] must be above 0")
    return key


def _secret_of(authorization: str) -> str:
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() != "basic":
        return value.strip()
    try:
        return base64.b64decode(value).decode().partition(":")[2]
    except ValueError:  # not base64, or not UTF-8
        return ""
