"""Small pictures and label files for the tests of data sets."""

import numpy as np
from PIL import Image
from scipy.io import savemat

from emerdiff_probe.images import save_labels

HEIGHT, WIDTH = 18, 24


def picture(path, seed=0, size=(HEIGHT, WIDTH)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)).save(path)


def label_map(path, *numbers):
    """A PNG of columns with these numbers, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.repeat(np.array(numbers), -(-WIDTH // len(numbers)))[:WIDTH] * np.ones((HEIGHT, 1), int)
    save_labels(labels, path)
    return labels


def matrix(path, **variables):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def values(sample):
    """Labels in the order in which they appear along the first row."""
    row = sample.labels[0]
    return row[np.r_[True, row[1:] != row[:-1]]].tolist()
