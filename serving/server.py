"""Runs a policy server on uvicorn until it is told to stop."""

import asyncio
import gc
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gen_vla.serving.application import Limits, PolicyServer
from gen_vla.serving.policy import ServedPolicy


LOOPBACK = ("127.0.0.1", "::1", "localhost")


class PunctualProtocol(H11Protocol):
    """HTTP that cuts a connection `timeout_keep_alive` seconds after it was made or after its last answer to a sender
    with the key, unless it has a request of one to answer.

    uvicorn alone waits for ever for a first request, and for the rest of one that has begun. So those who have no key
    could hold as many connections as `limit_concurrency` allows.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self.wait()

    @property
    def has_key(self) -> bool:
        """Whether the request that is being answered, or was last, came with the key."""
        return self.cycle is not None and self.cycle.scope.get("state", {}).get("has_key", False)

    def on_response_complete(self) -> None:
        if self.has_key:
            self.waiting.cancel()
            self.wait()
        super().on_response_complete()

    def wait(self) -> None:
        self.waiting = self.loop.call_later(self.timeout_keep_alive, self.end_wait)

    def end_wait(self) -> None:
        if self not in self.connections:  # it is gone, or a websocket, which is another protocol's
            return
        if self.has_key and not self.cycle.response_complete and not self.flow.write_paused:
            self.wait()
        else:
            self.transport.abort()


class GracefulServer(uvicorn.Server):
    """Finishes what runs before connections are closed; uvicorn alone closes websockets at once."""

    policy_server: PolicyServer

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.policy_server.close()
        await super().shutdown(sockets)


def make_server(policy: ServedPolicy, limits: Limits, host: str, port: int, **settings: Any) -> GracefulServer:
    """A server that has acted once in each size of batch, so that it is fast from its first answer on; `settings` are
    of `uvicorn.Config`. Raises `ValueError` for an address that other machines reach without a key, or a model that
    cannot act."""
    check_address(host, limits)
    policy.warm_up(limits.batch)
    gc.collect()
    gc.freeze()  # what is loaded stays: the collector need not look at it while a robot waits
    server = PolicyServer(policy, limits)
    config = uvicorn.Config(
        server.application,
        host,
        port,
        http=PunctualProtocol,
        ws="websockets-sansio",
        ws_max_size=limits.message_bytes,
        ws_per_message_deflate=False,  # pictures hardly shrink, and what is sent small could unpack large
        limit_concurrency=2 * (limits.connections + limits.queue),
        timeout_graceful_shutdown=5,
        proxy_headers=False,
        server_header=False,
        **{"log_level": "info", "access_log": False, **settings},
    )
    running = GracefulServer(config)
    running.policy_server = server
    return running


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket at an address, at which nobody is answered yet; raises `OSError` where there can be none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise OSError(
            f"got port {port} of {host}, which cannot be listened at ({error}); choose another --port or --host"
        ) from error
    return listening


def check_address(host: str, limits: Limits) -> None:
    if host not in LOOPBACK and not limits.api_key:
        raise ValueError(
            f"got --host {host}, which other machines reach, without a key; set GEN_VLA_API_KEY to a secret that "
            "robots send, too, or leave --host out and reach this machine by an SSH tunnel"
        )
