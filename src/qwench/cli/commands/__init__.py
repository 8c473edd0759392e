"""A module per command: `add_arguments` says what it takes, `execute` does it and is described by its docstring."""
