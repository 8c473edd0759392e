"""Answers that keep to a grammar, a regular expression or a JSON schema: which tokens may come next."""
