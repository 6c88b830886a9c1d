"""The command line: one verb per file, all of them clients of the backend."""
