"""Benchmarks: run by hand, never by the product; results lie in bench/results/."""
