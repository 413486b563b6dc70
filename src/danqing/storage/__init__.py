"""Bytes at rest: image codecs and the blob store. Knows no account, no task and no HTTP."""
