"""The command line. Knows app.py, which wires the rest; prints, and decides nothing itself."""
