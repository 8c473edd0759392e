"""Anthropic's requests and replies."""
