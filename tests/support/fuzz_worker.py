"""Reads damaged pictures, in a process of its own: `fuzz_worker.py FIRST LAST BOMBS SEED REPORT`.

The mutants FIRST to LAST of the seed are read, then the first BOMBS of the bombs. Before each its
number is written to REPORT.now, so that a crash can be told whose it is; a hang ends the process.
Time is this process's own, for one picture: files may hold many, which come one after another.
Memory is the peak of a single file over what the process held before the first.
"""

import contextlib
import faulthandler
import json
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imaging.grayscale import MAX_PIXELS, ImageError
from imaging.reader import read_frames, read_mode, read_patient, read_size
from tests.support.dicom_files import HIDDEN
from tests.support.fuzz_bombs import BOMBS
from tests.support.fuzz_corpus import Member, build_corpus
from tests.support.fuzz_mutations import Mutant, mutate

LIMIT_S = 2.0  # for the header, and for each frame
LIMIT_MIB = 512
HANG_S = 120  # of the wall's clock: the process ends
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}", re.IGNORECASE)


def read_kib(key: str) -> int:
    """A figure of this process's memory: VmHWM is its peak, VmRSS what it holds now."""
    status = Path("/proc/self/status")
    if not status.exists():  # no Linux: the peak of all files together, in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return int(re.findall(rf"{key}:\s+(\d+)", status.read_text())[0])


def forget_peak() -> None:
    """Let the peak begin anew, where Linux allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def find_fault(error: ImageError) -> str:
    """What is wrong with a refusal; "" for nothing."""
    text = f"{error} {error.reason}".lower()
    if not error.reason.strip() or len(str(error).splitlines()) != 1:
        return "a reason that is no line"
    if any(part in text for part in HIDDEN):
        return "a reason that repeats what the file says"
    if ADDRESS.search(text):
        return "a reason that holds an address"
    if "MemoryError" in error.reason:
        return "out of memory"
    return ""


def find_difference(number: int, pixels: npt.NDArray, member: Member) -> str:
    """How a frame is unlike what the member shows; "" for alike."""
    if not member.frames:
        return ""
    if number >= len(member.frames) or pixels.shape != member.frames[number].shape:
        return f"frame {number} of another shape"
    worst = int(np.abs(pixels.astype(int) - member.frames[number]).max())
    return f"frame {number} differs by {worst}" if worst > member.tolerance else ""


class Clock:
    """The longest of several waits, in this process's own time."""

    def __init__(self) -> None:
        self.longest_s, self.begun_s = 0.0, time.process_time()

    def lap(self) -> None:
        """End a wait and begin the next."""
        now_s = time.process_time()
        self.longest_s, self.begun_s = max(self.longest_s, now_s - self.begun_s), now_s


def read_whole(mutant: Mutant, clock: Clock) -> tuple[str, list[str]]:
    """Read all of a file.

    Returns:
        "read" or the reason of its refusal, and what is wrong with that.
    """
    faults, sizes, n_frames = [], [], 0
    try:
        width, height = read_size(mutant.content)
        mode, patient = read_mode(mutant.content), read_patient(mutant.content)
        if not mode or not re.fullmatch(r"(p[0-9a-f]{16})?", patient):
            faults.append("a mode or a patient that is none")
        clock.lap()
        for pixels in read_frames(mutant.content):
            clock.lap()
            if pixels.dtype != np.uint8 or pixels.shape != (height, width):
                faults.append(f"{pixels.dtype} {pixels.shape}, by its header {(height, width)}")
            if not 0 < pixels.size <= MAX_PIXELS:
                faults.append("no pixels, or over the limit")
            if mutant.same or mutant.sealed:
                faults.append(find_difference(n_frames, pixels, mutant.member))
            n_frames += 1
            sizes.append(pixels.shape)
    except ImageError as error:
        is_whole = mutant.same and mutant.member.name not in REFUSED
        faults += [find_fault(error), "a whole picture refused" if is_whole else ""]
        return error.reason, [fault for fault in faults if fault]
    if mutant.same and n_frames != len(mutant.member.frames or sizes):
        faults.append(f"{n_frames} frames")
    return "read", [fault for fault in faults if fault] + ([] if n_frames else ["nothing read"])


def measure(number: int | str, mutant: Mutant, start_kib: int) -> dict[str, Any]:
    """Read a file, and say what came of it, how long it took and how much memory."""
    NOW.write_text(f"{number}: {mutant.what}")
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    forget_peak()
    clock = Clock()
    try:
        said, faults = read_whole(mutant, clock)
    except Exception as error:  # noqa: BLE001  whatever is no ImageError is what is looked for
        said, faults = "", [f"raised {error!r}"]
    clock.lap()
    time_s, peak_mib = clock.longest_s, (read_kib("VmHWM") - start_kib) / 1024
    if time_s > LIMIT_S:
        faults.append(f"{time_s:.1f} s")
    if peak_mib > LIMIT_MIB:
        faults.append(f"{peak_mib:.0f} MiB")
    return {
        "number": number,
        "what": mutant.what,
        "said": said,
        "time_s": round(time_s, 3),
        "peak_mib": round(peak_mib, 1),
        "faults": faults,
    }


def draw_mutants(first: int, last: int, n_bombs: int, seed: int) -> Iterator[tuple[Any, Mutant]]:
    """The mutants of these numbers, then bombs."""
    for number in range(first, last):
        yield number, mutate(seed, number)
    whole = build_corpus()[0]
    for name in list(BOMBS)[:n_bombs]:
        yield name, Mutant(f"bomb: {name}", whole, BOMBS[name]())


def work(first: int, last: int, n_bombs: int, seed: int) -> dict[str, Any]:
    """Read them all; what came of them, in figures, and every fault."""
    for member in build_corpus():  # all that is imported late and kept is so before the start
        with contextlib.suppress(ImageError):
            list(read_frames(member.content))
    start_kib, rows, begun_s = read_kib("VmRSS"), [], time.monotonic()
    for number, mutant in draw_mutants(first, last, n_bombs, seed):
        rows.append(measure(number, mutant, start_kib))
        if rows[-1]["faults"]:
            print(seed, rows[-1], flush=True)
    faulthandler.cancel_dump_traceback_later()
    slowest, largest = (max(rows, key=lambda row: row[key]) for key in ("time_s", "peak_mib"))
    reasons = Counter(" ".join(re.sub(r"\d+", "N", row["said"]).split()[:4]) for row in rows)
    return {
        "seed": seed,
        "n": len(rows),
        "read": reasons.pop("read", 0),
        "refused": sum(reasons.values()),
        "reasons": dict(reasons.most_common()),
        "slowest": slowest,
        "largest": largest,
        "start_mib": round(start_kib / 1024, 1),
        "time_s": round(time.monotonic() - begun_s, 1),
        "faults": [row for row in rows if row["faults"]],
    }


REFUSED = {"DICOM JPEG-lossy"}  # a file of pydicom's that no decoder takes
NOW = Path(f"{sys.argv[5]}.now")
if __name__ == "__main__":
    Path(sys.argv[5]).write_text(json.dumps(work(*map(int, sys.argv[1:5])), indent=1))
