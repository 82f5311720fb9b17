"""The beam that a server has where a call names none."""

from dataclasses import replace
from typing import Any

from bytelm.beam import BeamParams
from bytelm.settings import ServerSettings
from bytelm_server.limits import Limits
from bytelm_server.requests import Beam


def served_params(**changes: Any) -> BeamParams:
    """The library's parameters for the server's defaults, and what differs from them."""
    return replace(Limits(ServerSettings()).beam_params(Beam()), **changes)
