"""Errors as libraries raise them: torch's own classes, texts of the CUDA runtime, the kernel's numbers."""

import errno
import math
import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

from cluster.errors import EngineFailed, InvalidRequest, NotFound, Unavailable
from cluster.faults import (
    HANGS_S,
    HANGS_TIMES,
    MAX_ATTEMPTS,
    MOST_BROKEN,
    SUSPECT,
    fault_of,
    given_up,
    hangs,
    hindered,
    short,
    suspect,
)

LOST = "CUDA error: an illegal memory access was encountered"


def raised(call: Callable[[], object]) -> BaseException:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def of_disk(number: int) -> OSError:
    return OSError(number, os.strerror(number), "/scratch/video.mp4")


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(LOST),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        RuntimeError(f"{LOST}\nCompile with TORCH_USE_CUDA_DSA"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
        RuntimeError("No CUDA GPUs are available"),
        RuntimeError("NCCL error in: ProcessGroupNCCL.cpp, unhandled cuda error"),
        caused(EngineFailed("video_1: it failed"), torch.AcceleratorError(LOST)),
        caused(ValueError("a state that cannot be read"), torch.AcceleratorError(LOST)),
    ],
)
def test_a_lost_device_is_told_from_what_was_asked(error: Exception) -> None:
    assert fault_of(error) == "device"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        MemoryError(),
        raised(lambda: torch.empty(1 << 50)),
        caused(ValueError("a state that cannot be read"), torch.OutOfMemoryError("CUDA out of memory")),
    ],
)
def test_memory_that_is_out_is_no_lost_device(error: Exception) -> None:
    assert fault_of(error) == "memory"


@pytest.mark.parametrize(
    "error",
    [
        ValueError(f"the prompt says: {LOST}"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        raised(lambda: torch.ones(2, 3) @ torch.ones(4, 5)),
        torch.AcceleratorError("CUDA error: invalid configuration argument"),
        torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device"),
        EngineFailed("video_1: the latents are not finite after 4 steps"),
        NotFound("files: video_1/master.mkv is not there"),
        caused(InvalidRequest("size: too large"), torch.AcceleratorError(LOST)),  # it was looked at by who raised it
        UnidentifiedImageError("cannot identify image file"),  # an OSError of no disk
        raised(lambda: Image.open(__file__)),
    ],
)
def test_what_a_model_makes_of_a_request_is_the_job_s_fault(error: Exception) -> None:
    assert fault_of(error) == "job"


@pytest.mark.parametrize(
    ("number", "own", "stores"),
    [
        (errno.ENOSPC, "full", "full"),
        (errno.EDQUOT, "full", "full"),
        (errno.EFBIG, "full", "full"),
        (errno.EROFS, "disk", "full"),
        (errno.EACCES, "disk", "full"),
        (errno.EIO, "disk", "full"),
        (errno.ENOENT, "disk", "full"),
        (errno.EINTR, "passing", "passing"),
        (errno.ETIMEDOUT, "passing", "passing"),
        (errno.ECONNRESET, "passing", "passing"),
    ],
)
def test_a_disk_of_its_own_is_given_up_and_a_store_is_waited_for(number: int, own: str, stores: str) -> None:
    assert fault_of(of_disk(number)) == own
    assert fault_of(caused(Unavailable("files: video_1/state"), of_disk(number))) == stores


def test_a_store_that_says_nothing_is_waited_for_however_long() -> None:
    assert fault_of(Unavailable("database: it does not answer")) == "passing"


def test_a_chain_that_bites_its_tail_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert fault_of(one) == "job"


@given(st.integers(1, 10**9), st.integers(0, 10**9))
def test_memory_that_did_for_as_much_before_is_lost_and_so_is_what_fails_two_jobs(tokens: int, proven: int) -> None:
    assert short(tokens, proven, failed_before=True) == "device"
    assert short(tokens, proven, failed_before=False) == ("device" if tokens <= proven else "job")


@given(st.lists(st.tuples(st.floats(0, 1000), st.booleans()), min_size=1))
def test_who_is_hindered_waits_ever_longer_and_what_lasts_is_timed_from_its_beginning(
    events: list[tuple[float, bool]],
) -> None:
    now_s, since_s, before = 0.0, None, None
    for passed_s, lasting in events:
        now_s += passed_s
        since_s = (now_s if since_s is None else since_s) if lasting else None
        found = hindered(before, now_s, (1.0, 30.0), lasting=lasting)
        assert found.pause_s == (1.0 if before is None else min(30.0, 2 * before.pause_s))
        assert found.lasts_s == (0.0 if since_s is None else now_s - since_s)
        before = found


@given(st.integers(0, 10), st.integers(0, 10))
def test_who_is_given_up_was_alone_before(attempts: int, broke: int) -> None:
    assert min(MAX_ATTEMPTS, MOST_BROKEN) > SUSPECT
    if given_up(attempts, broke):
        assert suspect(max(0, attempts - 1), max(0, broke - 1))


def test_a_call_hangs_after_many_times_what_is_usual_and_never_within_minutes() -> None:
    assert not hangs(HANGS_S - 1, 0.0)
    assert hangs(HANGS_S, 0.0)
    assert not hangs(HANGS_TIMES * HANGS_S - 1, HANGS_S)
    assert hangs(HANGS_TIMES * HANGS_S, HANGS_S)
    assert not hangs(1e9, math.inf)  # of loading
