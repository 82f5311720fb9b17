"""Answers on the wire: JSON by orjson, which writes −inf as null, as the API wants."""

from typing import Any

import orjson
from fastapi import Response


class JsonResponse(Response):
    """A body made of dicts, lists, numbers, text and numpy arrays."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """``content`` as JSON; numbers that are not finite become null."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
