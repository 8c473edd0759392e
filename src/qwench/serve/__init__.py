"""`qwench serve`: an OpenAI-compatible server around one model.

Three processes. The HTTP process (server, app, guard and the endpoints) speaks HTTP and JSON and never computes; the
engine process owns the model; the text process renders chat templates and tokenises, and may be killed for taking too
long. A child that dies is started again (supervisor). Whoever imports this needs `pip install "qwench[serve]"`.
"""
