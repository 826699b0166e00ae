"""The command line: parses, calls the public functions, prints. Results on stdout, the rest on stderr."""
