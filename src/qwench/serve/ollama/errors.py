"""Errors as Ollama shows them: {"error": message}. Chosen by served_app.py for the paths of this API."""

from __future__ import annotations

from typing import Any

from qwench.serve.failures import ApiError, ErrorForm


class OllamaErrors(ErrorForm):
    def show(self, error: ApiError) -> dict[str, Any]:
        is_unknown = error.code == "model_not_found"  # clients look for the words "not found", and offer to pull it
        return {"error": f"model not found: {error.message}" if is_unknown else error.message}
