#!/usr/bin/env python3
"""Times PyTorch on the model that flowrun bench times: the generator of generator.py and the discriminators of gan.py, optimiser steps on
noise, bfloat16 autocast, channels last, eager and compiled; first what the device does at best. One JSON object a line and measurement.

    python3 integration/reference/bench_torch.py                        # on the GPU, what docs/benchmarks.md compares
    python3 integration/reference/bench_torch.py --device cpu --preset demo --patch 32 32 16 --batch 1 --steps 2
    python3 integration/reference/bench_torch.py --device cpu --count   # parameters alone
"""
import argparse
import gc
import json
import statistics
import time

import torch
from torch import nn

import gan
import generator

PRESETS = {
    "vqgan3d": {"hidden": 64, "downsample": [4, 4, 4], "embedding": 8, "codes": 16384, "norm": "group", "groups": 32, "padding": "replicate", "decoder": "full"},
    "lean24g": {"hidden": 64, "downsample": [4, 4, 4], "embedding": 8, "codes": 16384, "norm": "channel", "groups": 32, "padding": "replicate", "decoder": "lean"},
    "demo": {"hidden": 16, "downsample": [4, 4, 4], "embedding": 8, "codes": 512, "norm": "channel", "groups": 8, "padding": "replicate", "decoder": "lean"},
}
CHUNK = 8192  # latents that are compared with all codes at once
WARM = 3  # steps that aren't timed


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


class Judges(nn.Module):
    """The discriminators that train.gan.weight brings in by default: of a slice across z, and of the patch."""

    def __init__(self, channels, layers):
        super().__init__()
        c = {**gan.BASE, "channels": channels, "layers": layers}
        self.image_discriminator, self.video_discriminator = gan.Discriminator(c, 2), gan.Discriminator(c, 3)
        for judge in self.children():
            judge.prepare()

    def forward(self, x, image):
        return [self.image_discriminator(image), self.video_discriminator(x)]


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def settle(device):
    if device == "cuda":
        torch.cuda.synchronize()


def timed(device, f, least, seconds):
    """Seconds of each call of f, at least so many, none begun behind so many seconds."""
    took, begun = [], time.perf_counter()
    while len(took) < least or time.perf_counter() - begun < seconds and len(took) < 50:
        start = time.perf_counter()
        f()
        settle(device)
        took.append(time.perf_counter() - start)
    return took


def ceiling(device):
    """What the device does at best: a matrix product in bfloat16 and a copy."""
    n, floats = (8192, 1 << 29) if device == "cuda" else (512, 1 << 22)
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    x, y = torch.randn(floats, device=device), torch.empty(floats, device=device)
    best = {}
    for name, f in (("product", lambda: a @ b), ("copy", lambda: y.copy_(x))):
        timed(device, f, WARM, 0)
        best[name] = statistics.median(timed(device, f, 10, 0))
    return {"flops": 2 * n**3 / best["product"], "bytes_per_second": 8 * floats / best["copy"]}


class Case:
    """One measurement: a model, its optimisers, and what is timed."""

    def __init__(self, a, preset, patch, batch, mode, compiled):
        self.device, self.batch = a.device, batch
        torch.manual_seed(0)
        self.model = Model(PRESETS[preset]).to(a.device, memory_format=torch.channels_last_3d)
        self.adam = torch.optim.Adam(self.model.parameters(), 1e-4, (0.5, 0.9))
        self.judges = self.judge_adam = None
        if mode == "gan":
            self.judges = Judges(a.channels, a.layers).to(a.device)
            self.judges.video_discriminator.to(memory_format=torch.channels_last_3d)
            self.judge_adam = torch.optim.Adam(self.judges.parameters(), 1e-4, (0.5, 0.9))
        wrap = torch.compile if compiled else lambda m: m
        self.run, self.judge = wrap(self.model), self.judges and wrap(self.judges)
        x = torch.rand(batch, 1, *reversed(patch), device=a.device) * 2 - 1
        self.x = x.contiguous(memory_format=torch.channels_last_3d)
        self.call = {"reconstruct": self.reconstruct}.get(mode, self.step)

    def reconstruct(self):
        with torch.no_grad(), torch.autocast(self.device, torch.bfloat16):
            self.run(self.x)

    def step(self):
        """An optimiser step: hinge loss and feature matching, generator and discriminators from the same reconstruction."""
        real, fake, deceive = gan.LOSSES["hinge"]
        with torch.autocast(self.device, torch.bfloat16):
            y, z, q = self.run(self.x)
        y = y.float()
        loss = (y - self.x).abs().mean() + 0.25 * (z - q).square().mean()
        if self.judges:
            # Cut outside of what is compiled: it would be compiled anew for each slice.
            slices = torch.randint(self.x.shape[2], (self.batch,)).tolist()
            with torch.autocast(self.device, torch.bfloat16):
                of_scans = self.judge(self.x, gan.cut(self.x, "z", slices))
                self.judges.requires_grad_(False)
                of_fakes = self.judge(y, gan.cut(y, "z", slices))
                self.judges.requires_grad_(True)
            for (_, features), (on_fake, fakes) in zip(of_scans, of_fakes):
                loss = loss + deceive(on_fake.float()).mean() + 4 * sum((f - g.detach()).abs().mean() for f, g in zip(fakes, features))
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adam.step()
        if self.judges:
            with torch.autocast(self.device, torch.bfloat16):
                of_fakes = self.judge(y.detach(), gan.cut(y.detach(), "z", slices))
            loss = sum((real(r.float()).mean() + fake(f.float()).mean()) / 2 for (r, _), (f, _) in zip(of_scans, of_fakes))
            self.judge_adam.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.judges.parameters(), 1.0)
            self.judge_adam.step()


def measure(a, *case):
    """Seconds of a step (median), patches a second and peaks of device memory, or why there are none."""
    if a.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        c = Case(a, *case)
        begun = time.perf_counter()
        timed(a.device, c.call, WARM if a.steps >= WARM else 1, 0)
        warm = time.perf_counter() - begun
        took = statistics.median(timed(a.device, c.call, a.steps, 5 if a.steps >= WARM else 0))
        said = {"seconds": took, "patches_per_second": c.batch / took, "warm_up_seconds": warm, "parameters": parameters(c.model)}
        if c.judges:
            said["discriminators"] = parameters(c.judges)
        if a.device == "cuda":
            said["peak_bytes"], said["reserved_bytes"] = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        return said
    except torch.cuda.OutOfMemoryError:
        return {"failed": "out of memory"}
    except Exception as e:  # whatever a compiler throws; the rest is measured all the same
        return {"failed": " ".join(f"{type(e).__name__}: {e}".split())[:300]}


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    p.add_argument("--preset", choices=PRESETS)
    p.add_argument("--patch", type=int, nargs=3, action="append", metavar=("X", "Y", "Z"))
    p.add_argument("--batch", type=int, action="append", help="patches of a micro-batch")
    p.add_argument("--steps", type=int, default=5, help="timed at least")
    p.add_argument("--channels", type=int, default=64, help="of the discriminators")
    p.add_argument("--layers", type=int, default=3, help="of the discriminators")
    p.add_argument("--seconds", type=float, default=float("inf"), help="behind which nothing more is begun")
    p.add_argument("--count", action="store_true", help="say how many parameters the models have, and measure nothing")
    a = p.parse_args()

    def say(**o):
        print(json.dumps(o), flush=True)

    if a.count:
        for name in [a.preset] if a.preset else PRESETS:
            say(preset=name, parameters=parameters(Model(PRESETS[name])), discriminators=parameters(Judges(a.channels, a.layers)))
        return
    begun = time.perf_counter()
    torch.backends.cudnn.benchmark = True
    name = torch.cuda.get_device_name() if a.device == "cuda" else "cpu"
    say(torch=torch.__version__, device=name, ceiling=ceiling(a.device))
    how = [False, True] if hasattr(torch, "compile") else [False]
    if a.preset:
        presets = [a.preset]
    else:
        presets = ["vqgan3d", "lean24g"]
    cases = [
        (preset, patch, batch, mode, compiled)
        for batch in a.batch or [1, 2]
        for preset in presets
        for patch in a.patch or [[256, 256, 128], [128, 128, 128]]
        for mode in ["autoencoder", "gan", "reconstruct"]
        for compiled in how
        if preset == presets[0] or batch == 1 and patch == [256, 256, 128] and not compiled
        if not (compiled and batch > 1) and not (mode == "reconstruct" and batch > 1)
    ]
    for case in cases:
        o = dict(zip(("preset", "patch", "batch", "mode", "compiled"), case))
        if time.perf_counter() - begun > a.seconds:
            say(**o, failed="left out: the time was over")
            continue
        say(**o, **measure(a, *case))
        gc.collect()
        if case[-1]:
            torch._dynamo.reset()
        if a.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
