"""What both sessions know of theirs. Must not send anything."""

from bytelm_client._plan import Plan
from bytelm_client._session_calls import Kind, SessionCalls
from bytelm_client.results import SessionInfo


class BaseSession:
    """A session, and what it is, as the last answer had it.

    Attributes:
        plan: its calls as things to send: with others, by ``client.batch``.
    """

    def __init__(self, info: SessionInfo) -> None:
        self._calls = SessionCalls(info)
        self.plan = Plan(self._calls)

    @property
    def info(self) -> SessionInfo:
        """What it is, as the last answer had it."""
        return self._calls.info

    @property
    def id(self) -> str:
        """Its name, by which any client with the same key can resume it."""
        return self.info.id

    @property
    def kind(self) -> Kind:
        """Whether it goes byte by byte or token by token."""
        return self.info.kind

    @property
    def version(self) -> int:
        """How many states it had so far; a change can be made to depend on it."""
        return self.info.version

    @property
    def length(self) -> int:
        """Bytes or tokens consumed."""
        return self.info.length

    def __repr__(self) -> str:
        unit = f"{self.kind}{'' if self.length == 1 else 's'}"
        return f"{type(self).__name__}({self.id!r}, {self.length} {unit}, version {self.version})"
