"""Make duplicates/vocabulary.npy: the words that slices are looked up by, from phantoms alone.

They need to be made again only when the features change: `python -m experiments.vocabulary`.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from tqdm import tqdm

from duplicates.sift_features import THUMBNAIL_PX, WORDS_FILE, describe_slice
from imaging.grayscale import resize_grey
from phantoms.generator import PhantomPlan, plan_phantoms, render_phantom

N_WORDS = 1000  # and as many mirror images
N_PLANNED, SEED = 3000, 11
N_SLICES = 700


def describe(plan: PhantomPlan) -> np.ndarray:
    """Descriptors [M, 128] of one phantom."""
    return describe_slice(resize_grey(render_phantom(plan)[0], THUMBNAIL_PX))[1]


def main() -> int:
    """Render, describe, cluster, write."""
    plans = [plan for plan in plan_phantoms(N_PLANNED, SEED) if not plan.sibling][:N_SLICES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(tqdm(pool.map(describe, plans), total=len(plans)))
    descriptors = np.concatenate(found).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    clusters = MiniBatchKMeans(
        N_WORDS, batch_size=8192, max_iter=20, n_init=1, random_state=SEED
    ).fit(descriptors)
    words = clusters.cluster_centers_
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    np.save(WORDS_FILE, np.rint(512 * words).clip(0, 255).astype(np.uint8))
    print(f"{WORDS_FILE.name}: {N_WORDS} words from {len(descriptors)} features")
    return 0


if __name__ == "__main__":
    sys.exit(main())
