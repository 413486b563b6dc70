"""Floor 0: the words of the trade. No I/O, no framework; imports nothing of danqing above it."""
