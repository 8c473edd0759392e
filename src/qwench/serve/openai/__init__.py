"""OpenAI's routes.

Each turns a request (protocol/openai/) into a call of Service.submit, and pieces into OpenAI's JSON. /tokenize and
/detokenize are vLLM's. Another API gets a folder beside this one, with a routes.py, on the same Service; app.py adds
its routes.
"""
