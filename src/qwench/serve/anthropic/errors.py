"""Errors as Anthropic's API shows them: {"type": "error", "error": {"type", "message"}, "request_id"}.

Chosen by served_app.py for the paths of this API.
"""

from __future__ import annotations

from typing import Any

from qwench.serve.failures import ApiError, ErrorForm
from qwench.serve.service import new_id

_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 500: "api_error", 503: "overloaded_error", 504: "timeout_error",
    507: "api_error",
}  # fmt: skip


class AnthropicErrors(ErrorForm):
    """Every answer has the id of its request in its head."""

    def __init__(self) -> None:
        self.request_id = new_id("req", "_")
        self.headers = {"request-id": self.request_id}

    def show(self, error: ApiError) -> dict[str, Any]:
        kind, message = _TYPES.get(error.status_code, "invalid_request_error"), error.message
        if error.code == "context_length_exceeded":
            message = f"prompt is too long: {message}"  # by which Claude Code knows that it must compact
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": self.request_id}
