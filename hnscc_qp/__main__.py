"""`python -m hnscc_qp` is `hnscc-qp`; `torchrun -m hnscc_qp` starts one of many."""

from hnscc_qp.cli.main import main

main()
