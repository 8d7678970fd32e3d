import http.cookiejar
import logging
import os
from typing import (
    Any, AsyncIterable, AsyncIterator, Awaitable, Callable, Generic, Iterable, Mapping, NamedTuple, Optional, Protocol,
    Sequence, Tuple, TypeVar, Union,
)

from lowhaio import (
    HttpConnectionTimeout, HttpDataError, Request, ResponseBody, _Body, _BytesLike, _Headers, _Params, _RequestHeaders,
    _Streamed,
)

_Item = TypeVar('_Item')
_AnyRequest = Callable[..., Awaitable[Tuple[bytes, _Headers, ResponseBody]]]
_Path = Union[str, bytes, 'os.PathLike[str]', 'os.PathLike[bytes]']
_Progress = Callable[[int, int], object]
_FormValue = Union[str, bytes, int, float, Sequence[Union[str, bytes, int, float]]]
_Value = Union[str, _BytesLike, _Body]
_Field = Union[Tuple[str, _Value], Tuple[str, _Value, str], Tuple[str, _Value, str, Optional[str]]]

class HttpLimitTimeout(HttpConnectionTimeout): ...
class HttpTooLarge(HttpDataError): ...

class HttpStatusError(HttpDataError):
    code: bytes
    headers: _Headers
    def __init__(self, message: str, code: bytes = ..., headers: _Headers = ...) -> None: ...

class _Fetch(Protocol):
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
    ) -> Tuple[bytes, _Headers, bytes]: ...

def retried(
    request: _AnyRequest,
    attempts: int = ...,
    statuses: Iterable[bytes] = ...,
    backoff: Callable[[int], float] = ...,
    max_delay: float = ...,
    idempotent: Iterable[bytes] = ...,
) -> Request: ...
def fetched(
    request: _AnyRequest,
    most: int = ...,
    *,
    attempts: int = ...,
    statuses: Iterable[bytes] = ...,
    backoff: Callable[[int], float] = ...,
    max_delay: float = ...,
    idempotent: Iterable[bytes] = ...,
) -> _Fetch: ...
def decompressed(request: _AnyRequest, codings: Optional[Iterable[bytes]] = ...) -> Request: ...
def limited(
    request: _AnyRequest, total: int, per_origin: Optional[int] = ..., timeout: Optional[float] = ...
) -> Request: ...
def basic(user: str, password: str) -> bytes: ...
def bearer(token: str) -> bytes: ...
def authorised(
    request: _AnyRequest, at: str, credentials: Union[bytes, Callable[[], Awaitable[bytes]]]
) -> Request: ...
def digest(request: _AnyRequest, at: str, user: str, password: str) -> Request: ...
def cookied(
    request: _AnyRequest, jar: Optional[http.cookiejar.CookieJar] = ..., path: Optional[_Path] = ...
) -> Request: ...
def logged(request: _AnyRequest, logger: Optional[logging.Logger] = ..., level: int = ...) -> Request: ...

class _Replayable:
    def __aiter__(self) -> AsyncIterator[_BytesLike]: ...

class _Sized(_Replayable):
    content_length: int

def json_body(value: Any) -> Tuple[_Headers, _Streamed]: ...
def form(
    fields: Union[Mapping[Any, _FormValue], Sequence[Tuple[Union[str, bytes], _FormValue]]]
) -> Tuple[_Headers, _Streamed]: ...
def multipart(fields: Iterable[_Field]) -> Tuple[_Headers, _Replayable]: ...
def file_body(path: _Path, progress: Optional[_Progress] = ...) -> _Sized: ...

class _Reader(Generic[_Item]):
    def __aiter__(self) -> AsyncIterator[_Item]: ...
    async def __anext__(self) -> _Item: ...
    async def aclose(self) -> None: ...

class Event(NamedTuple):
    type: str
    data: str
    id: str
    retry: Optional[int]

async def json_of(body: AsyncIterable[_BytesLike], most: int = ...) -> Any: ...
def lines(body: AsyncIterable[_BytesLike], most: int = ...) -> _Reader[bytes]: ...
def server_sent_events(body: AsyncIterable[_BytesLike], most: int = ...) -> _Reader[Event]: ...
async def saved(
    request: _AnyRequest,
    url: str,
    path: _Path,
    headers: _RequestHeaders = ...,
    attempts: int = ...,
    progress: Optional[Callable[[int, Optional[int]], object]] = ...,
    backoff: Callable[[int], float] = ...,
    **kwargs: Any,
) -> int: ...
