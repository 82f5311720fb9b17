"""The client of a bytelm server.

Names load when they are first used, so that the command line starts without them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bytelm_client._async.client import AsyncClient as AsyncClient
    from bytelm_client._async.session import AsyncSession as AsyncSession
    from bytelm_client._async.stream import AsyncStream as AsyncStream
    from bytelm_client._calls import Call as Call
    from bytelm_client._session_calls import More as More
    from bytelm_client._sync.client import Client as Client
    from bytelm_client._sync.session import Session as Session
    from bytelm_client._sync.stream import Stream as Stream
    from bytelm_client.contexts import Context as Context
    from bytelm_client.contexts import Contexts as Contexts
    from bytelm_client.contexts import Ids as Ids
    from bytelm_client.contexts import Messages as Messages
    from bytelm_client.contexts import Segments as Segments
    from bytelm_client.contexts import Special as Special
    from bytelm_client.contexts import Text as Text
    from bytelm_client.contexts import Texts as Texts
    from bytelm_client.contexts import messages as messages
    from bytelm_client.contexts import segments as segments
    from bytelm_client.contexts import special as special
    from bytelm_client.errors import APIError as APIError
    from bytelm_client.errors import BadAnswer as BadAnswer
    from bytelm_client.errors import BytelmClientError as BytelmClientError
    from bytelm_client.errors import CannotConnect as CannotConnect
    from bytelm_client.errors import CannotSend as CannotSend
    from bytelm_client.errors import Closed as Closed
    from bytelm_client.errors import Conflict as Conflict
    from bytelm_client.errors import ConnectionLost as ConnectionLost
    from bytelm_client.errors import Gone as Gone
    from bytelm_client.errors import InvalidRequest as InvalidRequest
    from bytelm_client.errors import ItemsFailed as ItemsFailed
    from bytelm_client.errors import NoAddress as NoAddress
    from bytelm_client.errors import NotAllowed as NotAllowed
    from bytelm_client.errors import NotFound as NotFound
    from bytelm_client.errors import NotReady as NotReady
    from bytelm_client.errors import ServerFailed as ServerFailed
    from bytelm_client.errors import TimedOut as TimedOut
    from bytelm_client.errors import TookTooLong as TookTooLong
    from bytelm_client.errors import TooManyRequests as TooManyRequests
    from bytelm_client.options import Beam as Beam
    from bytelm_client.options import BeamOptions as BeamOptions
    from bytelm_client.options import CallOptions as CallOptions
    from bytelm_client.options import GreedyOptions as GreedyOptions
    from bytelm_client.options import PartsOptions as PartsOptions
    from bytelm_client.options import SampleOptions as SampleOptions
    from bytelm_client.options import ScoreOptions as ScoreOptions
    from bytelm_client.options import SessionOptions as SessionOptions
    from bytelm_client.remote import RemoteByteLM as RemoteByteLM
    from bytelm_client.remote_tokens import RemoteTokenLM as RemoteTokenLM
    from bytelm_client.results import EOS_INDEX as EOS_INDEX
    from bytelm_client.results import Candidate as Candidate
    from bytelm_client.results import Continuation as Continuation
    from bytelm_client.results import Model as Model
    from bytelm_client.results import NextBytes as NextBytes
    from bytelm_client.results import NextTokens as NextTokens
    from bytelm_client.results import Score as Score
    from bytelm_client.results import SessionInfo as SessionInfo
    from bytelm_client.results import Span as Span
    from bytelm_client.results import Usage as Usage
    from bytelm_client.results import Vocab as Vocab

_HOMES = {
    "AsyncClient": "_async.client",
    "Client": "_sync.client",
    "Messages": "contexts",
    "Segments": "contexts",
    "Special": "contexts",
    "messages": "contexts",
    "segments": "contexts",
    "special": "contexts",
    "APIError": "errors",
    "BadAnswer": "errors",
    "BytelmClientError": "errors",
    "CannotConnect": "errors",
    "CannotSend": "errors",
    "Closed": "errors",
    "ConnectionLost": "errors",
    "InvalidRequest": "errors",
    "ItemsFailed": "errors",
    "NotReady": "errors",
    "ServerFailed": "errors",
    "Conflict": "errors",
    "Gone": "errors",
    "NoAddress": "errors",
    "NotAllowed": "errors",
    "NotFound": "errors",
    "TookTooLong": "errors",
    "TooManyRequests": "errors",
    "TimedOut": "errors",
    "Beam": "options",
    "BeamOptions": "options",
    "CallOptions": "options",
    "GreedyOptions": "options",
    "PartsOptions": "options",
    "SampleOptions": "options",
    "ScoreOptions": "options",
    "SessionOptions": "options",
    "Context": "contexts",
    "Contexts": "contexts",
    "Ids": "contexts",
    "Text": "contexts",
    "Texts": "contexts",
    "EOS_INDEX": "results",
    "More": "_session_calls",
    "Call": "_calls",
    "RemoteByteLM": "remote",
    "RemoteTokenLM": "remote_tokens",
    "Continuation": "results",
    "Model": "results",
    "NextBytes": "results",
    "Score": "results",
    "Usage": "results",
    "Vocab": "results",
    "Candidate": "results",
    "NextTokens": "results",
    "SessionInfo": "results",
    "Span": "results",
    "AsyncSession": "_async.session",
    "Session": "_sync.session",
    "AsyncStream": "_async.stream",
    "Stream": "_sync.stream",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
