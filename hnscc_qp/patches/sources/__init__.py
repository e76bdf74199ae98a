"""Annotations that were not drawn in QuPath: masks, ASAP's XML, GeoJSON files."""
