"""The engine process, the text process, and their clients in the HTTP process.

children launches them, supervisor restarts them, wire has the format of their messages. Knows no HTTP but the
status of an error.
"""
