"""The use case: accounts, the ledger and the way of a task. Knows no dialect's wire and no HTTP."""
