"""The network floor: every outgoing call of the product. Knows no account, no dialect and no database."""
