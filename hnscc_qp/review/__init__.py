"""What people said of the results: comparison with manual review, and verdicts to learn from."""
