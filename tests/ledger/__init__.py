"""The books: rules, concurrency, crashes."""
