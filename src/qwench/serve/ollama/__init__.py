"""Ollama's routes, /api/..., which its clients speak, and pages and editors that were made for it.

Each turns a request (protocol/ollama/) into a call of Service.submit, and pieces into lines of Ollama's JSON.
"""
