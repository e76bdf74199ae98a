"""Score maps, thresholds and regions of a slide."""
