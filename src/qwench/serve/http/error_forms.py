"""How each API tells of errors: chosen by the path of a request, before anything can refuse it.

Plain ASGI, around guard.py. Knows no API; served_app.py says whose form goes with which paths.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwench.serve.failures import FORM_KEY, ErrorForm


class ErrorForms:
    """ASGI middleware. forms: by what paths begin with."""

    def __init__(self, app: ASGIApp, forms: Mapping[str, type[ErrorForm]]) -> None:
        self._app, self._forms = app, dict(forms)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = next((form for start, form in self._forms.items() if scope.get("path", "").startswith(start)), None)
        if scope["type"] != "http" or kind is None:
            await self._app(scope, receive, send)
            return
        form = kind()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in form.headers.items():
                    headers.setdefault(name, value)  # a replica behind this process may have set it
            await send(message)

        await self._app({**scope, FORM_KEY: form}, receive, send_with_headers)
