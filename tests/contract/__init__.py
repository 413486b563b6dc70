"""Contract tests: the official clients against a live server, each in an environment of its own where its pins clash."""
