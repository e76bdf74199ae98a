"""Fitting, evaluation and mining."""
