"""Prepare the comparison with timm's train.py: python -m benchmarking.timm_setup DIR.

DIR receives an environment of its own with timm, which uses the torch of this environment, and
train.py of the same version, which is in no package. A file DIR/train.py that exists is kept.
"""

import argparse
import os
import shutil
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

import torch

import helper
from common import atomic_files
from helper import UserError, log

VERSION = "0.9.2"
URL = f"https://raw.githubusercontent.com/huggingface/pytorch-image-models/v{VERSION}/train.py"
TIMEOUT_S = 60


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser("benchmarking.timm_setup", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="new folder, about 50 MB")
    folder: Path = parser.parse_args(argv).folder
    return helper.run_command(prepare, folder, debug=False)


def prepare(folder: Path) -> None:
    """Install timm into a new environment in a folder and fetch its train.py.

    Raises:
        UserError: The environment exists, or a download failed.
    """
    environment = folder / "env"
    if environment.exists():
        raise UserError(f"{environment} exists; remove it, or give another folder")
    venv.create(environment, with_pip=True, symlinks=os.name != "nt")
    python = find_python(folder)
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    asked = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    packages = asked.stdout.strip()
    # torch must be the same, and would be a download of gigabytes
    parent = Path(torch.__file__).parents[1]
    Path(packages, "parent.pth").write_text(str(parent), "utf-8")
    if subprocess.run([python, "-m", "pip", "install", "-q", f"timm=={VERSION}"]).returncode:
        shutil.rmtree(environment)
        raise UserError(f"timm {VERSION} was not installed; pip says why above")
    script = folder / "train.py"
    if not script.exists():
        try:
            with urllib.request.urlopen(URL, timeout=TIMEOUT_S) as answer:
                atomic_files.write_text(script, answer.read().decode())
        except OSError as error:
            raise UserError(f"{URL}: {error}; save this file as {script} by hand") from error
    log.info("ready: python benchmark.py --timm %s", folder)


def find_python(folder: Path) -> str:
    """Return the interpreter of the environment in a prepared folder."""
    windows = sys.platform == "win32"
    return str(folder / "env" / ("Scripts/python.exe" if windows else "bin/python"))


if __name__ == "__main__":
    sys.exit(main())
