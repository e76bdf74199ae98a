"""Pixels: slides, tissue."""
