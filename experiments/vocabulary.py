"""Compute duplicates/vocabulary.npy, the visual words of the duplicate search, from phantoms.

    python -m experiments.vocabulary

Run it again only when the features in duplicates/sift_features.py change, and increase
FINDER_VERSION: the phantoms differ from those of the present file, so all words change.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from tqdm import tqdm

from duplicates.sift_features import THUMBNAIL_PX, VOCABULARY_FILE, describe_slice
from imaging.grayscale import resize_grey
from phantoms.generator import PhantomPlan, plan_phantoms, render_phantom

N_WORDS = 1000  # and as many mirrored words
N_PLANNED, SEED = 3000, 11
N_SLICES = 700


def main() -> int:
    """Render phantoms, cluster their descriptors and write the cluster centres."""

    def describe(plan: PhantomPlan) -> np.ndarray:
        return describe_slice(resize_grey(render_phantom(plan)[0], THUMBNAIL_PX))[1]  # [M, 128]

    plans = [plan for plan in plan_phantoms(N_PLANNED, SEED) if not plan.is_duplicate][:N_SLICES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(tqdm(pool.map(describe, plans), total=len(plans)))
    descriptors = np.concatenate(found).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    clusters = MiniBatchKMeans(
        N_WORDS, batch_size=8192, max_iter=20, n_init=1, random_state=SEED
    ).fit(descriptors)
    words = clusters.cluster_centers_
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    np.save(VOCABULARY_FILE, np.rint(512 * words).clip(0, 255).astype(np.uint8))
    print(f"{VOCABULARY_FILE.name}: {N_WORDS} words from {len(descriptors)} features")
    return 0


if __name__ == "__main__":
    sys.exit(main())
