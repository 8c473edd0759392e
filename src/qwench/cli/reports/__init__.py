"""What a command that measures has to show: the object of --json, and its tables. Measuring is `evaluate/`'s."""
