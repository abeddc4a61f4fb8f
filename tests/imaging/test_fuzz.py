"""Damaged images are read correctly or refused, within limits of time and memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.builders import ROOT
from tests.support.dicom_files import HIDDEN
from tests.support.fuzz_mutations import mutate
from tests.support.fuzz_worker import read_mutant

SEED = 1


@pytest.mark.filterwarnings("ignore")  # the reader's filters, which pytest resets
def test_sample_of_damaged_images() -> None:
    results = []
    for number in range(300):
        mutant = mutate(SEED, number)
        result, faults = read_mutant(mutant, [])
        assert not faults, (number, mutant.name, result)
        results.append(result)
    assert 0.2 * len(results) < results.count("read") < 0.8 * len(results)


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.timeout(3600)
def test_many_damaged_images_within_time_and_memory(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-W", "always", "-m", "tests.support.fuzz_worker"]
    command += ["20000", str(SEED), str(report)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    current = Path(f"{report}.now")
    last = current.read_text() if current.exists() else "none"
    assert done.returncode == 0, f"{done.stderr}\nseed {SEED}, last file: {last}"
    found = json.loads(report.read_text())
    print(json.dumps({key: found[key] for key in found if key != "faults"}))
    assert not found["faults"], found["faults"][:20]
    assert found["n"] > 20_000
    assert 4000 < found["read"] < 16_000
    # libtiff prints messages of its own, without text of the file
    for word in (*HIDDEN, "warning: ", "traceback"):
        assert word not in done.stderr.lower(), done.stderr
