"""What comes and goes over the wire: pydantic models of requests and of replies, a room per API.

    validation/  JSON to a body: its base class, the table of the fields and forms that clients send beside its own
    shared/      what the bodies of several APIs have: conversations, tools, formats, sampling; the base of replies
    openai/ anthropic/ ollama/   a file per endpoint, and what the endpoints reply
    pooling.py   of routes that rank, score, classify and pool

Every field has its bounds here, so that what is out of them is refused before anything is allocated.
"""
