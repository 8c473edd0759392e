"""Guessing tokens ahead, from the text itself or with a draft model, for the model to check several in one step."""
