"""Who may come in: everything that is refused before a call is looked at.

Calls need a key where there are keys. Where there are none, the server is open to whoever reaches
it, which must not include the web pages that a user of this machine visits: those are told apart by
what their browser says of itself (``Host``, ``Origin``, and a content type that ``wire.py`` wants).

=====================================================  =====================
path                                                   needs a key
=====================================================  =====================
``/health``, ``/docs``, ``/redoc``, ``/openapi.json``  never
``/metrics``                                           unless ``public_metrics``
everything else                                        always
=====================================================  =====================

Must not know what the calls are.
"""

import ipaddress
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from bytelm.settings import ServerSettings
from bytelm_server import documentation
from bytelm_server.callers import Caller
from bytelm_server.errors import CallError, answer
from bytelm_server.keys import Keys

OPEN = {"/health", "/openapi.json", *documentation.PATHS}


class KeyMissing(CallError):
    """The call has no API key."""

    status, type, code = 401, "unauthorized", "missing_key"


class KeyUnknown(CallError):
    """The call's API key is not one of the server's."""

    status, type, code = 401, "unauthorized", "unknown_key"


class HostRefused(CallError):
    """The call was meant for a server of another name."""

    status, type, code = 403, "forbidden", "host_not_allowed"


class OriginRefused(CallError):
    """The call comes from a web page of somebody else."""

    status, type, code = 403, "forbidden", "origin_not_allowed"


class Doors:
    """ASGI middleware that lets calls in, each with its caller as ``state.caller``.

    Args:
        app: where they go.
        keys: the API keys.
        settings: who else may come in.
    """

    def __init__(self, app: ASGIApp, keys: Keys, settings: ServerSettings) -> None:
        self.app = app
        self._keys = keys
        self._share_cache = settings.share_cache
        self._open = OPEN | ({"/metrics"} if settings.public_metrics else set())
        self._hosts = {*listed(settings.allowed_hosts), settings.host, "localhost"}
        self._origins = set(listed(settings.cors_origins))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on, or answer why it may not come in."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            caller = self._let_in(scope, Headers(scope=scope))
        except CallError as error:
            headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else None
            return await answer(error.status, error.detail, headers)(scope, receive, send)
        scope.setdefault("state", {})["caller"] = caller
        return await self.app(scope, receive, send)

    def _let_in(self, scope: Scope, headers: Headers) -> Caller:
        if not self._keys.required:
            self._check_host(headers.get("host", ""))
            self._check_origin(headers)
            return Caller(network=network_of(scope.get("client")))
        if scope["path"] in self._open:
            return Caller()
        kind, _, secret = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secret:
            raise KeyMissing("the call needs an API key: send the header Authorization: Bearer KEY")
        key = self._keys.find(secret.strip())
        if key is None:
            raise KeyUnknown("this API key is not known, or not any more")
        return Caller(key.id, None if self._share_cache else key.id)

    def _check_host(self, host: str) -> None:
        """Refuse a name that a stranger could have pointed at this machine."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        # A name on the internet has a dot; one that has none is of this network.
        if name in self._hosts or (name and "." not in name and ":" not in name) or _is_ip(name):
            return
        raise HostRefused(f"this server is not {host!r}; if it is, allow it with --allowed-hosts")

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or origin in self._origins:
            return
        if urlsplit(origin).netloc != headers.get("host"):
            raise OriginRefused(
                f"web pages of {origin} may not call this server; allow them with --cors-origins"
            )


def listed(names: str) -> list[str]:
    """The names in a setting, which has commas between them."""
    return [name.strip() for name in names.split(",") if name.strip()]


def network_of(client: Sequence[Any] | None) -> str:
    """The part of the network that one client has to itself: an address of IPv4, 64 bits of IPv6.

    Empty for this machine, which has many addresses.
    """
    try:
        address = ipaddress.ip_address(client[0] if client else "")
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return "" if address.is_loopback else str(ipaddress.ip_network((address, 64), False))
        address = address.ipv4_mapped
    return "" if address.is_loopback else str(address)


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
