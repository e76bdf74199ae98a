"""Work on the machines of a Dask cluster: any that has a scheduler's address (SSH, SLURM, Kubernetes).

The only file that imports dask, which is installed as `hnscc-qp[cluster]`.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any, TypeVar
from urllib.parse import urlsplit

from hnscc_qp.errors import ClusterError, HnsccQpError
from hnscc_qp.progress import Progress

J = TypeVar("J")
R = TypeVar("R")

_CONNECT_SECONDS = 10
_LOOK_SECONDS = 2.0


def on_cluster(
    address: str,
    work: Callable[[J], R],
    jobs: Sequence[J],
    *,
    one_per: str,
    progress: Progress,
) -> Iterator[tuple[int, R | HnsccQpError]]:
    """Do `work` for every job on a cluster's workers, and give results as they come.

    A job whose worker dies is done again by another one, three times at most. Workers may come and go.

    Args:
        address: of the scheduler, such as `tcp://10.0.0.5:8786`.
        work: a function of a module that the workers have; an `HnsccQpError` that it raises is given as the
            job's result, and any other is passed on.
        jobs: one for each task.
        one_per: a resource of which every task takes one, on a cluster with workers that offer it.
        progress: told what is waited for.

    Yields:
        Number of the job, and its result or error.

    Raises:
        ClusterError: dask is not installed, no scheduler answers, or it went away. The message says how
            many jobs were done.
    """
    try:
        import distributed  # noqa: PLC0415
    except ImportError as error:
        raise ClusterError("--scheduler needs Dask; run: pip install 'hnscc-qp[cluster]'") from error
    # Its own account of a lost connection, in many lines; ours is one.
    for name in ("distributed", "distributed.client", "distributed.comm", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # It has hardly any types.
    dask: Any = distributed
    try:
        _knock(address)
        client = dask.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, dask.TimeoutError, ValueError, TypeError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {address} ({_reason(error)}); check the address, or start one "
            "with: dask scheduler"
        ) from error
    done = 0
    try:
        workers = client.scheduler_info(n_workers=-1)["workers"]
        if not workers:
            progress.warn(
                f"{address} has no workers yet; waiting for them (start one with: dask worker {address})"
            )
        offered = any(one.get("resources", {}).get(one_per) for one in workers.values())
        resources = {one_per: 1} if offered else None
        futures = {
            client.submit(work, job, pure=False, resources=resources): index for index, job in enumerate(jobs)
        }
        while futures:
            try:
                with client.as_current():
                    ready = dask.wait(
                        list(futures), timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED"
                    ).done
            except dask.TimeoutError:
                ready = set()
            except (CancelledError, dask.comm.CommClosedError) as error:
                raise _gone(address, done, len(jobs)) from error
            if client.status != "running":
                raise _gone(address, done, len(jobs))
            for future in ready:
                if future.status in ("cancelled", "lost"):
                    raise _gone(address, done, len(jobs))
                try:
                    result = _outcome(future)
                except (CancelledError, dask.comm.CommClosedError) as error:
                    raise _gone(address, done, len(jobs)) from error
                done += 1
                yield futures.pop(future), result
    finally:
        client.close(timeout=_LOOK_SECONDS)


def _knock(address: str) -> None:
    """See that something listens: a client of Dask's that finds nothing tries long, and ends in noise."""
    place = urlsplit(address)
    if place.scheme in ("tcp", "tls"):
        if not (place.hostname and place.port):
            raise ValueError("it is not of the form tcp://HOST:PORT")
        socket.create_connection((place.hostname, place.port), timeout=_CONNECT_SECONDS).close()
    elif place.scheme not in ("ws", "wss", "ucx"):
        raise ValueError("it is not of the form tcp://HOST:PORT")


def _outcome(future: Any) -> Any:
    error = future.exception() if future.status == "error" else None
    if error is None:
        return future.result()
    if isinstance(error, HnsccQpError):
        return error
    if type(error).__name__ == "KilledWorker":
        return ClusterError(
            f"{error.task}: its worker died, and so did those that tried it again; look at the workers' "
            "logs (too little memory?), then run the same command again"
        )
    raise error


def _gone(address: str, done: int, total: int) -> ClusterError:
    return ClusterError(
        f"the Dask scheduler at {address} went away after {done} of {total} images; those are kept: start it "
        "again and run the same command"
    )


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
