"""One replica: the server of `qwench serve` in an actor of Ray's, where requests come as calls instead of connections.

Called by Ray Serve and, through it, by ingress.py.
"""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import AsyncIterator

from ray import serve
from starlette.types import Message, Receive, Send

from qwench.cli.commands.serve import settings_of
from qwench.log_lines import log_in_one_line_each
from qwench.replicas.forwarding import ForwardedRequest
from qwench.serve.processes.children import Children
from qwench.serve.served_app import ServedApp


class Replica:
    """Ray lets it answer until nothing is left to answer before it ends it."""

    async def __init__(self, options: Namespace) -> None:  # type: ignore[misc]  # Ray awaits it
        """options: of `qwench serve`. Raises QwenchError when the model can't be loaded."""
        log_in_one_line_each()
        self._name: str = serve.get_replica_context().replica_id.unique_id
        settings = await asyncio.to_thread(settings_of, options)  # may compile the model
        children = Children.launch(settings)
        try:
            self._served = ServedApp(settings, children)
            await self._served.start()
        except BaseException:
            for own in children:
                own.end()
            raise

    async def __del__(self) -> None:
        """Called by Ray when the replica has answered everything."""
        if hasattr(self, "_served"):
            await self._served.stop()

    async def answer(self, request: ForwardedRequest) -> AsyncIterator[str | list[Message]]:
        """This replica's name, at once, then the ASGI messages of the response, as many at a time as there are. Ends
        the work on it when the caller leaves."""
        yield self._name
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        task = asyncio.create_task(self._run(request, messages))
        try:
            is_open = True
            while is_open:
                batch = [await messages.get()]
                while not messages.empty():
                    batch.append(messages.get_nowait())
                is_open = batch[-1] is not None
                if given := [message for message in batch if message is not None]:
                    yield given
        finally:
            task.cancel()

    async def metrics(self) -> tuple[str, str]:
        """This replica's name, and its metrics in Prometheus' text format."""
        return self._name, self._served.metrics.text().decode()

    async def _run(self, request: ForwardedRequest, messages: asyncio.Queue[Message | None]) -> None:
        send: Send = messages.put
        try:
            await self._served.app(dict(request.scope), _receive_once(request.body), send)
        finally:
            messages.put_nowait(None)


def _receive_once(body: bytes) -> Receive:
    """Gives the body, then waits for a client that never leaves: if it does, the whole task is cancelled."""
    is_given = False

    async def receive() -> Message:
        nonlocal is_given
        if is_given:
            await asyncio.Event().wait()
        is_given = True
        return {"type": "http.request", "body": body}

    return receive
