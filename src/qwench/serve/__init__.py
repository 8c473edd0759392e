"""`qwench serve`: an OpenAI-compatible server around a model or several.

The HTTP process (server, app, http/, a folder of routes per API: openai/) never computes. Each model has two: the
engine process owns it; the text process renders chat templates and tokenises, and may be killed for taking too long.
A child that dies is restarted (processes/). Whoever imports this needs `pip install "qwench[serve]"`.
"""
