"""A generated cohort: lymph node slides, drawn, and the QuPath project around them."""

from hnscc_qp.demo.cohort import draw_cohort

__all__ = ["draw_cohort"]
