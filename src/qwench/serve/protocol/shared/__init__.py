"""What the requests and replies of several APIs have in common."""
