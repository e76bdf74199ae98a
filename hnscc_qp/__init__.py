"""QuPath-interoperable detection of head and neck squamous cell carcinoma in lymph node slides.

Research use only. The method is that of Tang et al. 2022, Laryngoscope Investig Otolaryngol 7:161-169.
"""

__version__ = "0.1.0"

RESEARCH_USE_ONLY = "Research use only: not for diagnosis."
