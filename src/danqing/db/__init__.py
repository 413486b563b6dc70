"""The database floor: tables, sessions and every SQL statement. Knows no quota rule and no HTTP."""
