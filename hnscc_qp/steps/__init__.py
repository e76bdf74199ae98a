"""A study's steps: each reads what earlier steps wrote and writes one folder of a generation."""
