"""Structured logs: one JSON object on a line, through Python's logging."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

from ....errors import InputError
from ....errors.printable import printable

logger = logging.getLogger("calotype.serve")


def log(event: str, fields: Mapping[str, Any], level: int = logging.INFO) -> None:
    """Write one line about an event. Fields that are None are left out."""
    if logger.isEnabledFor(level):
        known = {name: value for name, value in fields.items() if value is not None}
        logger.log(level, event, extra={"fields": known})


class JSONLines(logging.Formatter):
    """Formats a record as one JSON object, with the fields that `log` takes."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": at, "level": record.levelname.lower(), "logger": record.name, "event": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, "fields", {}), default=lambda value: printable(str(value)))


def set_up_logs(level: str) -> None:
    """Write the lines of this level and above to stderr. Raises `InputError` for an unknown level."""
    names = logging.getLevelNamesMapping()
    if level.upper() not in names:
        expected = "debug, info, warning or error"
        message = f"log_level must be {expected}, got {level!r:.40}."
        raise InputError(message, argument="log_level", got=level, expected=expected)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    logging.basicConfig(level=names[level.upper()], handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, names[level.upper()]))
