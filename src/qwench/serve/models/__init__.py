"""Several models in one server: what each is given, and which are in memory."""
