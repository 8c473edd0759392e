"""The bodies of requests, as OpenAI's API defines them and with what vLLM adds; a file per endpoint.

Every field has its bounds here, so that what is out of them is refused before anything is allocated. An unknown field
is refused too: ignoring one would answer another question than was asked.
"""
