"""stdin, stdout and stderr: answers as they come, progress, tables, streams that nobody reads."""
