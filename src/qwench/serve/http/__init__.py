"""HTTP for every API: limits, keys, strict JSON bodies, server-sent events, the OpenAPI document, the page at `/`.

Knows no API. Put around the routes by app.py and served_app.py.
"""
