"""Anthropic's routes: /v1/messages and its count of tokens, which the `anthropic` client and Claude Code speak.

Each turns a request (protocol/anthropic/) into a call of Service.submit, and pieces into Anthropic's JSON.
"""
