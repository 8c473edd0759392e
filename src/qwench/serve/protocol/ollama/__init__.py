"""Ollama's requests and replies."""
