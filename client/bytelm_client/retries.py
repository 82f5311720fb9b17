"""When a call is sent again, and how long to wait before.

A call is sent again when no answer came because of the connection, and when the server says that
it cannot answer now. That is safe: most calls change nothing, and most that do carry a key by
which the server knows the second one (``Idempotency-Key``); a stream that moves a session has none,
and is sent again only where the server has not begun it. A call that took too long is not sent
again, for it would take as long once more.

Must not send or wait.
"""

import email.utils
import random
import time

import httpx

FIRST_WAIT = 0.2
"""Seconds before the second attempt; each later wait is twice as long."""
LONGEST_WAIT = 60.0
"""The server may ask for so many seconds; if it asks for more, its error is raised at once."""

LATER = (429, 502, 503)
"""Statuses with which an answer may come later: too many calls, not ready, a gateway without us."""

NOT_BEGUN = (429, 503)
"""Those with which the server says that it has not begun."""

_UNREACHED = (httpx.ConnectError, httpx.ConnectTimeout)
_BROKEN = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)


class Attempts:
    """The attempts of one call.

    Args:
        retries: how often it may be sent again.
        once: whether it must not happen twice, and the server would not know the second one.
    """

    def __init__(self, retries: int, once: bool = False) -> None:
        self.left = retries
        self._later = NOT_BEGUN if once else LATER
        self._broken = _UNREACHED if once else _BROKEN
        self._wait = FIRST_WAIT

    def after_error(self, error: Exception) -> float | None:
        """Seconds to wait before the next attempt; None when there is none to make."""
        return self._next() if isinstance(error, self._broken) else None

    def after_answer(self, response: httpx.Response) -> float | None:
        """Seconds to wait before the next attempt; None to take the answer as it is."""
        if response.status_code not in self._later:
            return None
        wanted = retry_after(response)
        if wanted is None:
            return self._next()
        if wanted > LONGEST_WAIT or not self.left:
            return None
        self.left -= 1
        return wanted

    def _next(self) -> float | None:
        if not self.left:
            return None
        self.left -= 1
        wait, self._wait = self._wait, self._wait * 2
        # Clients that failed together must not come back together.
        return wait * random.uniform(0.5, 1.0)


def retry_after(response: httpx.Response) -> float | None:
    """The seconds that the server asks to wait; None where it does not say."""
    value = response.headers.get("retry-after", "")
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
