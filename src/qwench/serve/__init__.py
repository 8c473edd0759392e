"""`qwench serve`: an OpenAI-compatible server around one model.

Three processes. The HTTP process (server, app, http/, a folder of routes per API: openai/) never computes; the engine
process owns the model; the text process renders chat templates and tokenises, and may be killed for taking too
long. A child that dies is restarted (processes/). Whoever imports this needs `pip install "qwench[serve]"`.
"""
