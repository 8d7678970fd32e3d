import asyncio
import socket
import ssl
from typing import (
    Any, AsyncIterable, AsyncIterator, Awaitable, Callable, FrozenSet, Iterable, Mapping, Optional, Protocol, Sequence,
    Tuple, Union,
)

_Headers = Tuple[Tuple[bytes, bytes], ...]
_BytesLike = Union[bytes, bytearray, memoryview]
_Body = Union[AsyncIterable[_BytesLike], Callable[[], AsyncIterable[_BytesLike]]]
_ParamValue = Union[str, bytes, int, float, Sequence[Union[str, bytes, int, float]]]
_Param = Union[str, bytes, int, float]
_Params = Union[Mapping[Any, _ParamValue], Iterable[Tuple[_Param, _ParamValue]]]
_RequestHeaders = Union[Mapping[bytes, bytes], Iterable[Tuple[bytes, bytes]], None]
_LookUp = Callable[[str, Any], Awaitable[Tuple[str, ...]]]
_OpenSocket = Callable[[int, Any], Awaitable[Connection]]
_StartTls = Callable[[Connection, str], Awaitable[Connection]]
_Connect = Callable[[str, str, int, _LookUp, _OpenSocket, _StartTls], Awaitable[Connection]]
_Resolve = Callable[[str, Any], Awaitable[Iterable[Any]]]
_ClearCache = Callable[[], Awaitable[None]]

class HttpError(Exception): ...
class HttpRequestError(HttpError, ValueError): ...
class HttpConnectionError(HttpError): ...
class HttpDnsError(HttpConnectionError): ...
class HttpTlsError(HttpConnectionError): ...
class HttpConnectionTimeout(HttpConnectionError, asyncio.TimeoutError): ...

class HttpDataError(HttpError):
    reused: bool
    answered: bool
    sending: bool

class HttpBodyError(HttpDataError, ValueError): ...
class HttpConnectionClosedError(HttpDataError): ...
class HttpProtocolError(HttpDataError): ...
class HttpHeaderTooLong(HttpProtocolError): ...
class HttpRedirectError(HttpDataError): ...
class HttpDataTimeout(HttpDataError, asyncio.TimeoutError): ...

class Connection:
    receive: Callable[[], Optional[bytes]]
    send: Callable[[_BytesLike], int]
    wait: Callable[..., Awaitable[None]]
    watch: Callable[..., None]
    close: Callable[..., None]
    abandon: Callable[[], None]
    poll: Callable[[], Optional[bytes]]
    has_unsent: Callable[[], bool]
    address: Optional[Tuple[Any, str]]
    def __init__(
        self,
        receive: Callable[[], Optional[bytes]],
        send: Callable[[_BytesLike], int],
        wait: Callable[..., Awaitable[None]],
        watch: Callable[..., None],
        close: Callable[..., None],
        abandon: Callable[[], None],
        poll: Optional[Callable[[], Optional[bytes]]] = ...,
        has_unsent: Callable[[], bool] = ...,
    ) -> None: ...

class ResponseBody:
    reused: bool
    sent_all: bool
    def __aiter__(self) -> ResponseBody: ...
    async def __anext__(self) -> bytes: ...
    async def aclose(self) -> None: ...
    def when_done(self, callback: Callable[[], object]) -> None: ...

class Request(Protocol):
    async def __call__(
        self,
        method: bytes,
        url: str,
        params: _Params = ...,
        headers: _RequestHeaders = ...,
        body: Optional[_Body] = ...,
        *,
        connect_timeout: Optional[float] = ...,
        socket_timeout: Optional[float] = ...,
    ) -> Tuple[bytes, _Headers, ResponseBody]: ...

def Pool(
    get_dns_resolver: Callable[[], Tuple[_Resolve, _ClearCache]] = ...,
    get_ssl_context: Callable[[], ssl.SSLContext] = ...,
    connect: _Connect = ...,
    set_sock_options: Callable[[socket.socket], None] = ...,
    keep_alive_timeout: float = ...,
    connect_timeout: float = ...,
    socket_timeout: float = ...,
    expect_timeout: float = ...,
    max_idle: int = ...,
    recv_bufsize: int = ...,
    max_header_length: int = ...,
) -> Tuple[Request, Callable[[], Awaitable[None]]]: ...

class _Streamed:
    content_length: int
    def __aiter__(self) -> AsyncIterator[_BytesLike]: ...
    def __call__(self) -> AsyncIterator[_BytesLike]: ...

__version__: str
IDEMPOTENT: FrozenSet[bytes]

def streamed(data: _BytesLike) -> _Streamed: ...
async def buffered(body: AsyncIterable[_BytesLike], most: Optional[int] = ...) -> bytes: ...
def replayable(body: Optional[_Body]) -> bool: ...
def origin(url: str) -> Tuple[str, str, int]: ...
def url_with_params(url: str, params: _Params) -> str: ...
def redirectable(
    request: Callable[..., Awaitable[Tuple[bytes, _Headers, ResponseBody]]],
    max_redirects: int = ...,
    dropped: Iterable[bytes] = ...,
    downgrade: bool = ...,
    on_redirect: Optional[Callable[[bytes, str], object]] = ...,
) -> Request: ...
def get_ssl_context_default() -> ssl.SSLContext: ...
def set_sock_options_default(sock: socket.socket) -> None: ...
async def connect_directly(
    scheme: str, host: str, port: int, look_up: _LookUp, open_socket: _OpenSocket, start_tls: _StartTls
) -> Connection: ...
