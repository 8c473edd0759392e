"""The bodies of requests, as OpenAI's API defines them and with what vLLM adds; a file per endpoint.

Every field has its bounds here, so that what is out of them is refused before anything is allocated. What else clients
send goes by field_table.py: it is another name or form of a field, of no consequence, or left aside and named.
"""
