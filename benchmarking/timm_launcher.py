"""Run timm's train.py: python timm_launcher.py THREADS TRAIN_PY OPTIONS.

It runs in timm's environment, where nothing of this project can be imported.
"""

import runpy
import sys

import torch

if __name__ == "__main__":
    n_threads, script, *options = sys.argv[1:]
    torch.set_num_threads(int(n_threads))
    if not torch.cuda.is_available():
        torch.cuda.synchronize = lambda *_: None  # its validation waits for CUDA on every machine
    sys.argv = [script, *options]
    runpy.run_path(script, run_name="__main__")
