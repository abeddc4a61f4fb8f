"""Read damaged images in a process of its own: `fuzz_worker.py N_MUTANTS SEED REPORT`.

It reads mutants 0 to N_MUTANTS - 1 of the seed, then all bombs. REPORT.now names the current file,
so that a crash can be attributed; a hang ends the process. Time is CPU time per frame, memory the
peak of a file above that at the start.
"""

import contextlib
import faulthandler
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from imaging.grayscale import MAX_PIXELS, ImageError
from imaging.kinds import START_BYTES
from imaging.reader import read_frames, read_mode, read_patient, read_size
from imaging.volumes import find_volume_kind
from tests.support.dicom_files import HIDDEN
from tests.support.fuzz_bombs import BOMBS
from tests.support.fuzz_corpus import Member, build_corpus
from tests.support.fuzz_mutations import Mutant, mutate

MAX_S = 10.0  # CPU time of a header or a frame; 2 s on a current core
MAX_MIB = 512
HANG_S = 240  # wall-clock time of a file
ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}", re.IGNORECASE)


def read_memory_kib(key: str) -> int:
    """Return VmHWM (peak) or VmRSS (now) of this process; 0 where it is not Linux."""
    status = Path("/proc/self/status")
    return int(re.findall(rf"{key}:\s+(\d+)", status.read_text())[0]) if status.exists() else 0


def check_reason(error: ImageError) -> str:
    """Return what is wrong with the message of a refusal, "" for nothing."""
    text = f"{error} {error.reason}".lower()
    faults = {
        "reason is not one line": not error.reason.strip() or len(str(error).splitlines()) != 1,
        "reason repeats text of the file": any(part in text for part in HIDDEN),
        "reason contains an address": ADDRESS.search(text),
        "out of memory": "memoryerror" in text,
    }
    return ", ".join(fault for fault in faults if faults[fault])


def compare_frame(index: int, pixels: npt.NDArray, member: Member) -> str:
    """Return how a frame differs from the expected one, "" for equal within the tolerance."""
    if not member.frames:
        return ""
    if index >= len(member.frames) or pixels.shape != member.frames[index].shape:
        return f"frame {index} has another shape"
    worst = int(np.abs(pixels.astype(int) - member.frames[index]).max())
    return f"frame {index} differs by {worst}" if worst > member.tolerance else ""


def read_mutant(mutant: Mutant, laps_s: list[float]) -> tuple[str, list[str]]:
    """Read all frames of a file; append the CPU time after the header and after each frame.

    Returns:
        "read" or the reason of the refusal, and what is wrong with the result.
    """
    faults, n_frames = [], 0
    try:
        is_volume = find_volume_kind(mutant.content[:START_BYTES])
        shape = None if is_volume else read_size(mutant.content)[::-1]
        mode, patient = read_mode(mutant.content), read_patient(mutant.content)
        if not mode or not re.fullmatch(r"(p[0-9a-f]{16})?", patient):
            faults.append("invalid mode or patient")
        laps_s.append(time.process_time())
        for pixels in read_frames(mutant.content):
            laps_s.append(time.process_time())
            if (
                pixels.dtype != np.uint8
                or pixels.ndim != 2
                or pixels.shape != (shape or pixels.shape)
            ):
                faults.append(f"{pixels.dtype} {pixels.shape}, expected {shape}")
            if not 0 < pixels.size <= MAX_PIXELS:
                faults.append("no pixels, or over the limit")
            if mutant.must_match:
                faults.append(compare_frame(n_frames, pixels, mutant.member))
            n_frames += 1
    except ImageError as error:
        faults += [check_reason(error), "valid image refused" if mutant.must_read else ""]
        return error.reason, [fault for fault in faults if fault]
    expected = mutant.member.frames if mutant.must_read else ()
    if not n_frames or (expected and n_frames != len(expected)):
        faults.append(f"{n_frames} frames")
    return "read", [fault for fault in faults if fault]


def measure(mutant: Mutant, start_kib: int) -> dict[str, Any]:
    """Read a file and return the result, its faults, time and memory."""
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    laps_s = [time.process_time()]
    try:
        result, faults = read_mutant(mutant, laps_s)
    except Exception as error:  # noqa: BLE001  anything but an ImageError is a fault
        result, faults = "", [f"raised {error!r}"]
    laps_s.append(time.process_time())
    time_s = max(np.diff(laps_s))
    peak_mib = (read_memory_kib("VmHWM") - start_kib) / 1024
    if time_s > MAX_S:
        faults.append(f"{time_s:.1f} s")
    if peak_mib > MAX_MIB:
        faults.append(f"{peak_mib:.0f} MiB")
    row = {"name": mutant.name, "result": result, "faults": faults}
    return row | {"time_s": round(time_s, 3), "peak_mib": round(peak_mib, 1)}


def work(n_mutants: int, seed: int, current: Path) -> dict[str, Any]:
    """Read all files and return a summary with every fault."""
    corpus = build_corpus()
    for member in corpus:  # imports everything before memory is measured
        with contextlib.suppress(ImageError):
            list(read_frames(member.content))
    start_kib, rows = read_memory_kib("VmRSS"), []
    for key in (*range(n_mutants), *BOMBS):
        is_bomb = isinstance(key, str)
        mutant = Mutant(key, corpus[0], BOMBS[key]()) if is_bomb else mutate(seed, key)
        current.write_text(f"{key}: {mutant.name}")
        rows.append(measure(mutant, start_kib) | {"key": key})
    faulthandler.cancel_dump_traceback_later()
    n_read = sum(row["result"] == "read" for row in rows)
    return {
        "n": len(rows),
        "read": n_read,
        "slowest": max(rows, key=lambda row: row["time_s"]),
        "largest": max(rows, key=lambda row: row["peak_mib"]),
        "faults": [row for row in rows if row["faults"]],
    }


if __name__ == "__main__":
    n_mutants, seed, report = sys.argv[1:]
    found = work(int(n_mutants), int(seed), Path(f"{report}.now"))
    Path(report).write_text(json.dumps(found, indent=1))
