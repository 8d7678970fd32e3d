from typing import Any, Awaitable, Callable, Tuple

_Resolve = Callable[[str, Any], Awaitable[Tuple[Any, ...]]]
_ClearCache = Callable[[], Awaitable[None]]

__all__ = ('get_dns_resolver_default', 'system_resolver', 'OrderedAddress')

class OrderedAddress(str):
    is_ordered: bool
    expires_at: float
    def __new__(cls, address: str, expires_at: float) -> OrderedAddress: ...

def get_dns_resolver_default(
    hosts: str = ...,
    resolv_conf: str = ...,
    nsswitch_conf: str = ...,
    port: int = ...,
    getaddrinfo: Callable[..., Any] = ...,
) -> Tuple[_Resolve, _ClearCache]: ...
def system_resolver(getaddrinfo: Callable[..., Any] = ...) -> Tuple[_Resolve, _ClearCache]: ...
