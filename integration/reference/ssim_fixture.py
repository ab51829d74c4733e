#!/usr/bin/env python3
"""Writes stages/metrics/testdata/reference.json: what scikit-image and PyTorch say of images that the Go tests make too.

    python3 integration/reference/ssim_fixture.py > stages/metrics/testdata/reference.json

Written with scikit-image 0.19.3, scipy 1.10.1 and PyTorch 1.13.0.
"""
import json
import sys

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, gaussian_laplace
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def image(size, salt):
    """Integers only, so that Go makes the same float32: a ramp and hash noise. Indexed [z, y, x]."""
    nx, ny, nz = size
    z, y, x = np.meshgrid(np.arange(nz), np.arange(ny), np.arange(nx), indexing="ij")
    k = ((z * ny + y) * nx + x).astype(np.uint64)
    noise = ((k * 2654435761 + salt * 40503) % 2**32 // 65536).astype(np.int64) % 256
    ramp = (x * 11 + y * 7 + z * 5) % 192
    return ((ramp + noise // (2 + salt)) / 160 - 1).astype(np.float32)


def ssim(a, b):
    """scikit-image's formula where it refuses: short axes mirrored and not cropped."""
    f = lambda v: gaussian_filter(v, 1.5, truncate=3.5, mode="reflect")
    ux, uy = f(a), f(b)
    vx, vy, vxy = f(a * a) - ux * ux, f(b * b) - uy * uy, f(a * b) - ux * uy
    c1, c2 = 0.02**2, 0.06**2
    s = (2 * ux * uy + c1) * (2 * vxy + c2) / ((ux**2 + uy**2 + c1) * (vx + vy + c2))
    return s[tuple(slice(5, -5) if n >= 11 else slice(None) for n in s.shape)].mean()


def hfen(a, b):
    """The high-frequency error norm, and the ratio of high-frequency energies."""

    def f(v):
        v = gaussian_laplace(v, 1.5, truncate=4.67, mode="reflect")
        return v[tuple(slice(7, -7) if n >= 15 else slice(None) for n in v.shape)]

    x, y = f(a), f(b)
    return np.sqrt(np.square(y - x).sum() / np.square(x).sum()), np.square(y).sum() / np.square(x).sum()


def pair(size):
    return tuple(np.clip(image(size, s), -1, 1).astype(np.float64) for s in (0, 1))


out = {"ssim": [], "hfen": [], "trilinear": []}
for size in ([13, 12, 14], [24, 11, 17], [11, 11, 11]):
    a, b = pair(size)
    s = structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2)
    assert abs(s - ssim(a, b)) < 1e-12
    out["ssim"].append({"size": size, "ssim": s, "psnr": peak_signal_noise_ratio(a, b, data_range=2)})
for size in ([7, 20, 12], [12, 13, 3], [1, 2, 5]):
    a, b = pair(size)
    out["ssim"].append({"size": size, "ssim": ssim(a, b), "psnr": peak_signal_noise_ratio(a, b, data_range=2)})
for size in ([16, 19, 17], [15, 30, 6], [2, 15, 20], [1, 2, 5]):
    norm, ratio = hfen(*pair(size))
    out["hfen"].append({"size": size, "norm": norm, "ratio": ratio})
for size, factor in (([8, 4, 4], [4, 2, 1]), ([6, 6, 3], [3, 2, 2]), ([5, 7, 2], [2, 3, 4])):
    v = torch.from_numpy(image(size, 0))[None, None]
    low = [max(1, n // f) for n, f in zip(size, factor)]
    opts = {"mode": "trilinear", "align_corners": False}
    r = torch.nn.functional.interpolate(v, size=low[::-1], **opts)
    r = torch.nn.functional.interpolate(r, size=size[::-1], **opts)
    out["trilinear"].append({"size": size, "factor": factor, "want": [round(float(x), 7) for x in r.flatten()]})
json.dump(out, sys.stdout)
print()
