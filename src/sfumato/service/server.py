"""Running an application until a signal ends it: what runs is finished, the rest is refused."""

import asyncio
import logging
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from sfumato.errors import UserError
from sfumato.service.service import Service

IDLE_SECONDS = 75
LONGEST_HEADERS = 64 << 10


def bound_socket(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError where the port is taken or the address is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; give another --port, or 0 for a free one"
        ) from None
    return listening


def address_of(listening: socket.socket, host: str) -> str:
    """The address of a socket as a URL."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}"


def serve(app: FastAPI, service: Service, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serves until SIGINT or SIGTERM; a second signal ends at once. `ready` is called with the address.

    Raises UserError for an address that is not free, and for a folder of results in use.
    """
    settings = service.settings
    listening = bound_socket(settings.host, settings.port)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        h11_max_incomplete_event_size=LONGEST_HEADERS,
    )
    server = _Server(config, service)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    with listening:
        asyncio.run(_serve(server, listening, lambda: ready(address_of(listening, settings.host))))


async def _serve(server: "_Server", listening: socket.socket, ready: Callable[[], None]) -> None:
    task = asyncio.create_task(server.serve([listening]))
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    if server.started:
        ready()
    await task


class _Server(uvicorn.Server):
    """Stops the service at the first signal, so that new jobs are refused while running ones are finished."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: object) -> None:
        if self._draining is not None:
            super().handle_exit(sig, frame)  # type: ignore[arg-type]
            self.force_exit = True
            return
        loop = asyncio.get_event_loop()
        self._draining = loop.create_task(self._drain(sig))

    async def _drain(self, sig: int) -> None:
        """Refuses new jobs, lets those that run finish while their clients are still answered, then ends."""
        await asyncio.to_thread(self.service.stop)
        while self.service.worker.is_alive():
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.2)  # the last events reach their listeners
        super().handle_exit(sig, None)
