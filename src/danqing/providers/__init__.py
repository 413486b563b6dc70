"""What can draw, behind one port. Knows the engine's client and the dialects; never the ledger or HTTP serving."""
