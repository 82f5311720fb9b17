"""Logs as lines of JSON, each with the id of the request that it belongs to."""

import logging
import logging.config
from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The request that the current task works for."""


class OfRequest(logging.Filter):
    """Puts the request's id into every record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record."""
        if (found := request_id.get()) is not None:
            record.request_id = found
        return True


def configure(level: str) -> None:
    """Let this process log to stderr in JSON: bytelm from ``level``, everything else warnings."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"of_request": {"()": OfRequest}},
            "formatters": {
                "json": {
                    "()": "pythonjsonlogger.orjson.OrjsonFormatter",
                    "fmt": ["levelname", "name", "message"],
                    "rename_fields": {"levelname": "level", "name": "logger"},
                    "timestamp": "time",
                }
            },
            "handlers": {
                "stderr": {
                    "class": "logging.StreamHandler",
                    "formatter": "json",
                    "filters": ["of_request"],
                }
            },
            "root": {"handlers": ["stderr"], "level": "WARNING"},
            "loggers": {
                "bytelm": {"level": level},
                "bytelm_server": {"level": level},
            },
        }
    )
