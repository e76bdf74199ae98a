"""Labelled windows."""
