"""One file per network architecture the engine can run."""
