"""Every byte that comes from QuPath or goes to it."""
