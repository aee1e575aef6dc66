"""Whose fault it is where the work of a video replica fails, and what follows for the job and for the replica. Pure.

job      the request, or what a model made of it: this job fails
memory   there was too little: it is freed, and the job tries once more with the device to itself; then see `short`
device   the GPU, or this process's hold on it, is lost, or hangs: the job goes on elsewhere, the replica leaves
disk     the replica's own folder is of no use: the same
full     a disk or a store refuses, and will until somebody mends it: the job waits for LASTING_S, then it fails
passing  a store that does not answer, and whatever else passes: the job waits, however long

A job that is there when replicas break may be what breaks them, so it is counted: a suspect runs alone, and after
MOST_BROKEN it fails. Alone means that no other job can be blamed for it, or it for another's.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cluster.errors import EngineFailed, MorayError, Unavailable

Fault = Literal["job", "memory", "device", "disk", "full", "passing"]

MAX_ATTEMPTS = 4  # a job that takes its replica down at the same step must not do so for ever
MOST_BROKEN = 3  # replicas whose device or disk broke under one job, however far it got
SUSPECT = 2  # of either; the next attempts are alone on a replica, or another job's fault might count
LASTING_S = 900.0  # time to make room on a disk
HANGS_S = 1200.0  # of one call of an engine, at least: a forward may be compiled first, text encoded on a CPU
HANGS_TIMES = 20.0  # what is usual

_NO_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
_NO_DEVICE = (
    "cuda error",
    "cuda unknown error",
    "no cuda gpus",
    "found no nvidia driver",
    "nvml_success",
    "nccl error",
    "ecc error",
    "cublas_status_execution_failed",
    "cublas_status_internal_error",
    "cublas_status_mapping_error",
    "cublas_status_not_initialized",
    "cudnn_status_execution_failed",
    "cudnn_status_internal_error",
    "cudnn_status_mapping_error",
    "cudnn_status_not_initialized",
)
# What the CUDA runtime says of a call that it did not make: the device is as it was.
_REFUSED = (
    "invalid argument",
    "invalid configuration argument",
    "invalid device function",
    "no kernel image is available",
    "operation not supported",
    "too many resources requested",
    "cublas_status_invalid_value",
    "cublas_status_not_supported",
    "cudnn_status_bad_param",
    "cudnn_status_not_supported",
)
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_BROKEN = frozenset(
    (errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENODEV, errno.ENXIO, errno.ENOENT, errno.ENOTDIR)
)
_REFUSING = frozenset(("PermissionDeniedError", "UnauthenticatedError"))  # obstore's


def fault_of(error: BaseException) -> Fault:
    """By what was raised, and by what that was raised from. OSErrors are the replica's own folder's."""
    if isinstance(error, Unavailable):
        return "full" if any(_refuses(each) for each in _chain(error)) else "passing"
    if isinstance(error, MorayError) and not isinstance(error, EngineFailed):
        return "job"
    found = {_fault(each) for each in _chain(error)}
    for fault in ("memory", "device", "disk", "full", "passing"):
        if fault in found:
            return fault
    return "job"


def short(tokens: int, proven_tokens: int, *, failed_before: bool) -> Literal["job", "device"]:
    """Whose fault it is that memory is out, of a job alone with all that can be freed.

    `proven_tokens`: of the largest job that this replica has finished. `failed_before`: the last one that ended here
    failed for memory, too.
    """
    return "device" if tokens <= proven_tokens or failed_before else "job"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindrance:
    """Of a job that is not at fault: how long to wait now, and for how long nothing has passed by itself."""

    pause_s: float
    since_s: float | None = None
    lasts_s: float = 0.0


def hindered(before: Hindrance | None, now_s: float, pauses_s: tuple[float, float], *, lasting: bool) -> Hindrance:
    """`pauses_s`: the first and the longest. `lasting`: by a fault of kind `full`; one that passes ends its time."""
    first_s, longest_s = pauses_s
    pause_s = first_s if before is None else min(2 * before.pause_s, longest_s)
    if not lasting:
        return Hindrance(pause_s=pause_s)
    since_s = now_s if before is None or before.since_s is None else before.since_s
    return Hindrance(pause_s=pause_s, since_s=since_s, lasts_s=now_s - since_s)


def hangs(lasts_s: float, usual_s: float) -> bool:
    """Whether a call of an engine that takes so long already will never end. Loading has no usual time: math.inf."""
    return lasts_s >= max(HANGS_S, HANGS_TIMES * usual_s)


def suspect(attempts: int, broke: int) -> bool:
    """`attempts` that gained nothing, `broke`: replicas that broke under the job."""
    return attempts >= SUSPECT or broke >= SUSPECT


def given_up(attempts: int, broke: int) -> bool:
    return attempts >= MAX_ATTEMPTS or broke >= MOST_BROKEN


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or (None if each.__suppress_context__ else each.__context__)


def _fault(error: BaseException) -> Fault:
    if isinstance(error, OSError):
        return _of_disk(error.errno)
    kinds = {kind.__name__ for kind in type(error).__mro__}
    text = str(error).lower() if "RuntimeError" in kinds else ""
    if kinds & {"OutOfMemoryError", "MemoryError"} or any(words in text for words in _NO_MEMORY):
        return "memory"
    if any(words in text for words in _REFUSED):
        return "job"
    lost = kinds & {"AcceleratorError", "RankLost", "EngineHung"}  # torch's; of deployments.video.ranks, and .thread
    return "device" if lost or any(words in text for words in _NO_DEVICE) else "job"


def _of_disk(number: int | None) -> Fault:
    if number is None:  # no disk said so: Pillow of a broken image
        return "job"
    if number in _FULL:
        return "full"
    return "disk" if number in _BROKEN else "passing"


def _refuses(error: BaseException) -> bool:
    """A store that says no, rather than nothing."""
    if isinstance(error, OSError):
        return error.errno in _FULL or error.errno in _BROKEN
    return bool(_REFUSING & {kind.__name__ for kind in type(error).__mro__})
