#!/usr/bin/env python3
"""Times PyTorch on the model that flowrun bench times: the generator of generator.py, an optimiser step on noise, bfloat16 autocast, channels
last; eager, and compiled where torch.compile is there. One line a measurement: what, patches/s, peak GiB of device memory.

    python3 integration/reference/bench_torch.py                        # on the GPU, presets at 256x256x128 and 128x128x128
    python3 integration/reference/bench_torch.py --device cpu --preset demo --patch 32 32 32 --steps 2
"""
import argparse
import time

import torch
from torch import nn

import generator

PRESETS = {
    "vqgan3d": {"hidden": 64, "downsample": [4, 4, 4], "embedding": 8, "codes": 16384, "norm": "group", "groups": 32, "padding": "replicate", "decoder": "full"},
    "lean24g": {"hidden": 64, "downsample": [4, 4, 4], "embedding": 8, "codes": 16384, "norm": "channel", "groups": 32, "padding": "replicate", "decoder": "lean"},
    "demo": {"hidden": 16, "downsample": [4, 4, 4], "embedding": 8, "codes": 512, "norm": "channel", "groups": 8, "padding": "replicate", "decoder": "lean"},
}
CHUNK = 8192  # latents that are compared with all codes at once


class Model(nn.Module):
    """Generator with a search of codes in chunks, in float32."""

    def __init__(self, c):
        super().__init__()
        self.generator = generator.Generator(c)
        nn.init.normal_(self.generator.codebook.embeddings)

    def forward(self, x):
        g = self.generator
        h = g.encoder(x)
        with torch.autocast(x.device.type, enabled=False):
            z = g.pre_vq_conv(h.float())
            rows, book = z.detach().movedim(1, -1).flatten(0, -2), g.codebook.embeddings
            codes = torch.cat([torch.cdist(part, book).argmin(1) for part in rows.split(CHUNK)])
            q = book[codes].view(*z.shape[:1], *z.shape[2:], -1).movedim(-1, 1)
            w = g.post_vq_conv(z + (q - z).detach())
        return g.decoder(w), z, q


def measure(c, patch, batch, device, steps, compiled):
    """Returns patches a second and the peak of device memory in bytes."""
    torch.manual_seed(0)
    model = Model(c).to(device, memory_format=torch.channels_last_3d)
    adam = torch.optim.Adam(model.parameters(), 1e-4, (0.5, 0.9))
    run = torch.compile(model) if compiled else model
    x = torch.rand(batch, 1, *reversed(patch), device=device) * 2 - 1

    def step():
        with torch.autocast(device, torch.bfloat16):
            y, z, q = run(x)
        loss = (y.float() - x).abs().mean() + 0.25 * (z - q).square().mean()
        adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()

    def settle():
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        step()
    settle()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    settle()
    took = time.perf_counter() - start
    return steps * batch / took, torch.cuda.max_memory_allocated() if device == "cuda" else 0


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    p.add_argument("--preset", choices=PRESETS, action="append")
    p.add_argument("--patch", type=int, nargs=3, action="append", metavar=("X", "Y", "Z"))
    p.add_argument("--batch", type=int, action="append", help="patches of a micro-batch")
    p.add_argument("--steps", type=int, default=10)
    a = p.parse_args()
    print("torch", torch.__version__, torch.cuda.get_device_name() if a.device == "cuda" else "cpu")
    for preset in a.preset or ["vqgan3d", "lean24g"]:
        for patch in a.patch or [[256, 256, 128], [128, 128, 128]]:
            for batch in a.batch or [1, 2]:
                for compiled in [False, True] if hasattr(torch, "compile") else [False]:
                    what = f"{preset} {'x'.join(map(str, patch))} micro-batch {batch} {'compiled' if compiled else 'eager'}"
                    try:
                        rate, peak = measure(PRESETS[preset], patch, batch, a.device, a.steps, compiled)
                        print(f"{what}: {rate:.4g} patches/s, peak {peak / 2**30:.2f} GiB", flush=True)
                    except torch.cuda.OutOfMemoryError:
                        print(f"{what}: out of memory", flush=True)
                        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
