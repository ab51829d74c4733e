#!/usr/bin/env python3
"""Writes gpu/vqgan/testdata/parity-*.safetensors: what PyTorch makes of small models, for gpu/vqgan/parity_test.go.

    python3 integration/reference/generator.py gpu/vqgan/testdata

This is our own description of the generator in PyTorch's ops, in float64, so that a difference is flowrun's rounding. Nothing in it is
random but how the weights start. A fixture holds

    the state dict and the codebook, float16 (they are rounded to it before anything is computed), which flowrun loads by name;
    input, target        three batches;
    forced.*             three optimiser steps, each from a state that the weights say exactly (forced below), on its own batch;
    free.*               ten steps in a row from the weights at step 0, the batches in turn.

A state has too many numbers to keep, so of gradients, moments and changes there is a row of probes for each parameter, sorted by name.
Ties don't decide: no latent is near having another code and no voxel near its target (MARGIN, KINK), or the next seed is tried. Written with PyTorch 1.13.0 and NumPy 1.24.2 (Debian's python3-torch).
"""
import json
import struct
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

STEPS = [1, 5, 300]  # the counters of the forced steps: Adam's bias and the warm-up of the running means change
FREE = 10
SAMPLES = 10
MARGIN = 2e-4  # of codes, how far the nearest latent is from having another, as a share of the distance between the two
KINK = 1e-5  # of voxels: the least |output - target|; at 0 the gradient of the L1 loss jumps

OPTIONS = {
    "batch": 2, "loss": {"l1": 4, "l2": 0.5, "commitment": 0.25}, "codebook": {"decay": 0.95},
    "clip": 9, "ema": 0.9, "beta1": 0.5, "beta2": 0.9,
}
FORCED_LR, FREE_LR = 1e-3, 1e-4  # at 1e-3 a run in a row is chaotic: within ten steps PyTorch's float32 leaves its float64

VARIANTS = {
    "full": {"hidden": 4, "downsample": [4, 2, 1], "embedding": 4, "codes": 20,
             "norm": "group", "groups": 4, "padding": "replicate", "decoder": "full"},
    "lean": {"hidden": 4, "downsample": [4, 4, 4], "embedding": 6, "codes": 12,
             "norm": "channel", "groups": 4, "padding": "zero", "decoder": "lean"},
}
PATCHES = {"full": [16, 10, 5], "lean": [20, 12, 8]}  # x, y, z


# The model. Tensors are N, C, D, H, W with D, H, W = z, y, x.


def pad_same(x, kernel, stride, padding):
    """Adds kernel - stride to each axis, the odd one in front."""
    widths = []
    for k, s in zip(reversed(kernel), reversed(stride)):  # F.pad begins with the last axis
        total = k - s
        widths += [total // 2 + total % 2, total // 2]
    return F.pad(x, widths, mode={"replicate": "replicate", "zero": "constant"}[padding])


class SamePadConv3d(nn.Module):
    def __init__(self, ci, co, kernel, stride, padding):
        super().__init__()
        self.kernel, self.stride, self.padding = (kernel,) * 3, stride, padding
        self.conv = nn.Conv3d(ci, co, self.kernel, stride)

    def forward(self, x):
        return self.conv(pad_same(x, self.kernel, self.stride, self.padding))


class SamePadConvTranspose3d(nn.Module):
    def __init__(self, ci, co, kernel, stride, padding):
        super().__init__()
        self.kernel, self.stride, self.padding = (kernel,) * 3, stride, padding
        self.convt = nn.ConvTranspose3d(ci, co, self.kernel, stride, padding=kernel - 1)

    def forward(self, x):
        return self.convt(pad_same(x, self.kernel, self.stride, self.padding))


class ChannelNorm(nn.Module):
    """Divides each voxel by the root mean square over its channels."""

    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        x = x / torch.sqrt(x.square().mean(1, keepdim=True) + 1e-6)
        return x * self.weight.view(-1, 1, 1, 1) + self.bias.view(-1, 1, 1, 1)


def norm(c, channels):
    return ChannelNorm(channels) if c["norm"] == "channel" else nn.GroupNorm(c["groups"], channels, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, c, channels):
        super().__init__()
        self.norm1, self.conv1 = norm(c, channels), SamePadConv3d(channels, channels, 3, (1, 1, 1), c["padding"])
        self.norm2, self.conv2 = norm(c, channels), SamePadConv3d(channels, channels, 3, (1, 1, 1), c["padding"])

    def forward(self, x):
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


def levels(c):
    return max(c["downsample"]).bit_length() - 1


def stride(c, level):
    """2 along the axes that are still to be halved; z, y, x."""
    return tuple(2 if f.bit_length() - 1 > level else 1 for f in reversed(c["downsample"]))


class Encoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        h = c["hidden"]
        self.conv_first = SamePadConv3d(1, h, 3, (1, 1, 1), c["padding"])
        self.conv_blocks = nn.ModuleList()
        for i in range(levels(c)):
            block = nn.Module()
            block.down = SamePadConv3d(h << i, h << i + 1, 4, stride(c, i), c["padding"])
            block.res = ResBlock(c, h << i + 1)
            self.conv_blocks.append(block)
        self.final_block = nn.Sequential(norm(c, h << levels(c)), nn.SiLU())

    def forward(self, x):
        x = self.conv_first(x)
        for block in self.conv_blocks:
            x = block.res(block.down(x))
        return self.final_block(x)


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        channels = c["hidden"] << levels(c)
        self.final_block = nn.Sequential(norm(c, channels), nn.SiLU())
        self.conv_blocks = nn.ModuleList()
        for i in range(levels(c)):
            out = (c["hidden"] << levels(c) - i) // (2 if c["decoder"] == "lean" else 1)
            block = nn.Module()
            block.up = SamePadConvTranspose3d(channels, out, 4, stride(c, i), c["padding"])
            block.res1, block.res2 = ResBlock(c, out), ResBlock(c, out)
            self.conv_blocks.append(block)
            channels = out
        self.conv_last = SamePadConv3d(channels, 1, 3, (1, 1, 1), c["padding"])

    def forward(self, x):
        x = self.final_block(x)
        for block in self.conv_blocks:
            x = block.res2(block.res1(block.up(x)))
        return self.conv_last(x)


class Codebook(nn.Module):
    """Vectors that follow their latents by running means; no gradient reaches them."""

    def __init__(self, codes, dim):
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(codes, dim))
        self.register_buffer("N", torch.zeros(codes))
        self.register_buffer("z_avg", torch.zeros(codes, dim))

    def forward(self, z):
        """Returns codes [N, D, H, W], their vectors, and the margin: how far the latent that is nearest to having another code would
        have to move, as a share of the distance between the two."""
        rows = z.detach().movedim(1, -1)
        squares = (rows.unsqueeze(-2) - self.embeddings).square().sum(-1)
        (d1, d2), (i1, i2) = (t.unbind(-1) for t in squares.topk(2, largest=False))
        apart = (self.embeddings[i1] - self.embeddings[i2]).square().sum(-1)
        return i1, self.embeddings[i1].movedim(-1, 1), ((d2 - d1) / (2 * apart)).min().item()

    @torch.no_grad()
    def update(self, z, codes, decay):
        rows, codes = z.movedim(1, -1).flatten(0, -2), codes.flatten()
        counts = torch.bincount(codes, minlength=len(self.N)).to(z.dtype)
        sums = torch.zeros_like(self.z_avg).index_add_(0, codes, rows)
        self.N.mul_(decay).add_(counts, alpha=1 - decay)
        self.z_avg.mul_(decay).add_(sums, alpha=1 - decay)
        total = self.N.sum()
        self.embeddings.copy_(self.z_avg / ((self.N + 1e-7) / (total + len(self.N) * 1e-7) * total)[:, None])


class Generator(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.encoder, self.decoder = Encoder(c), Decoder(c)
        self.pre_vq_conv = SamePadConv3d(c["hidden"] << levels(c), c["embedding"], 1, (1, 1, 1), c["padding"])
        self.post_vq_conv = SamePadConv3d(c["embedding"], c["hidden"] << levels(c), 1, (1, 1, 1), c["padding"])
        self.codebook = Codebook(c["codes"], c["embedding"])

    def forward(self, x):
        z = self.pre_vq_conv(self.encoder(x))
        codes, q, margin = self.codebook(z)
        y = self.decoder(self.post_vq_conv(z + (q - z).detach()))
        return y, z, q, codes, margin


# Training.


class Close(Exception):
    """Rounding could decide: another seed, then."""


class Run:
    """A model with its optimiser and its running means."""

    def __init__(self, c, start, lr):
        self.model = Generator(c).double()
        self.model.load_state_dict(start)
        self.average = {k: p.detach().clone() for k, p in self.model.named_parameters()}
        self.adam = torch.optim.Adam(self.model.parameters(), lr, (OPTIONS["beta1"], OPTIONS["beta2"]))
        self.steps = 0

    def forced(self, k):
        """Goes to the k-th forced state, made of the weights in their first one. All of it is exact in float32."""
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                last = p.flatten().flip(0).view_as(p)
                self.adam.state[p] = {"step": torch.tensor(STEPS[k] - 1.0), "exp_avg": last * k / 64, "exp_avg_sq": (last * k / 32).square()}
                self.average[name] = p * (16 + k) / 16
            for t in self.model.state_dict().values():
                t.mul_((16 - k) / 16)
        self.steps = STEPS[k] - 1

    def step(self, x, target):
        """One optimiser step. Returns what it has to say."""
        y, z, q, codes, margin = self.model(x)
        if margin < MARGIN:
            raise Close(f"a latent is {margin:.1e} from having another code")
        if (kink := (y - target).abs().min().item()) < KINK:
            raise Close(f"a voxel is {kink:.1e} from its target")
        l1, l2, commitment = (y - target).abs().mean(), (y - target).square().mean(), (z - q.detach()).square().mean()
        loss = OPTIONS["loss"]
        total = loss["l1"] * l1 + loss["l2"] * l2 + loss["commitment"] * commitment
        self.adam.zero_grad()
        total.backward()
        gradient = {k: p.grad.clone() for k, p in self.model.named_parameters()}
        size = nn.utils.clip_grad_norm_(self.model.parameters(), OPTIONS["clip"])  # of norm + 1e-6, which is no difference here
        self.adam.step()
        self.steps += 1
        decay = min(OPTIONS["ema"], (1 + self.steps) / (10 + self.steps))
        for k, p in self.model.named_parameters():
            self.average[k] = decay * self.average[k] + (1 - decay) * p.detach()
        self.model.codebook.update(z.detach(), codes, OPTIONS["codebook"]["decay"])
        share = torch.bincount(codes.flatten()).double() / codes.numel()
        perplexity = torch.exp(-torch.special.xlogy(share, share).sum())
        clipped = (y.clamp(-1, 1) - target.clamp(-1, 1)).square().mean()
        losses = torch.stack([t.detach() for t in (l1, l2, clipped, commitment, total, size, perplexity)])
        return {"losses": losses, "output": y.detach(), "codes": codes, "gradient": gradient}

    def weights(self):
        return {k: p.detach().clone() for k, p in self.model.named_parameters()}

    def moments(self, name):
        return {k: self.adam.state[p][name].clone() for k, p in self.model.named_parameters()}


def probes(tensors):
    """A row for each tensor, sorted by name: its norm, its product with sin(1), sin(2), …, which an element in the wrong place
    changes, and some elements."""
    rows = []
    for _, t in sorted(tensors.items()):
        v = t.flatten().numpy()
        at = np.arange(SAMPLES) * 7919 % len(v)
        rows.append([np.sqrt(v @ v), v @ np.sin(1.0 + np.arange(len(v))), *v[at]])
    return np.array(rows)


def change(new, old):
    return {k: new[k] - old[k] for k in new}


# Fixtures.


def codebooks(model):
    return {name: t.clone() for name, t in model.state_dict().items() if name.startswith("codebook")}


def beginning(c, batch):
    """PyTorch's layers as they start, norms and codebook not as plain as that; all of it exact in float16."""
    model = Generator(c).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or "final_block" in name:
                p.add_(0.2 * torch.randn_like(p))
            p.copy_(p.half())
        b = model.codebook
        latents = model.pre_vq_conv(model.encoder(batch)).movedim(1, -1).flatten(0, -2)
        chosen = latents[torch.randperm(len(latents))[: len(b.N)]]
        b.embeddings.copy_((chosen + 0.3 * latents.std(0) * torch.randn_like(chosen)).half())
        b.N.copy_((0.5 + 6 * torch.rand_like(b.N)).half())
        b.z_avg.copy_((b.embeddings * b.N[:, None] * (1 + 0.1 * torch.randn_like(chosen))).half())
    return model.state_dict()


def batches(patch):
    """Waves that leave [-1, 1] here and there, and their noisy inputs; [3, n, 1, D, H, W]."""
    shape = (len(STEPS), OPTIONS["batch"], 1, *reversed(patch))
    z, y, x = torch.meshgrid(*(torch.arange(n).double() for n in shape[3:]), indexing="ij")
    a, b, c = torch.rand(3, *shape[:3], 1, 1, 1).double().unbind(0)
    target = (1.2 * torch.sin(a * x + 3 * b) * torch.cos(b * y + c * z) + 0.05 * torch.randn(shape)).half().double()
    return (target + 0.1 * torch.randn(shape)).half().double(), target


def fixture(c, patch, seed):
    torch.manual_seed(seed)
    inputs, targets = batches(patch)
    start = beginning(c, inputs[0])
    tensors = {k: v.numpy().astype("<f2") for k, v in start.items()}
    tensors["input"], tensors["target"] = (t.squeeze(2).numpy().astype("<f2") for t in (inputs, targets))
    tensors["forced.step"] = np.array(STEPS, "<i4")
    tensors["forced.lr"], tensors["free.lr"] = np.full(len(STEPS), FORCED_LR), np.full(FREE, FREE_LR)

    rows = []
    for k in range(len(STEPS)):
        run = Run(c, start, FORCED_LR)
        run.forced(k)
        weights, average = run.weights(), run.average.copy()
        said = run.step(inputs[k], targets[k])
        rows.append({
            "losses": said["losses"], "output": said["output"].squeeze(1), "codes": said["codes"],
            "gradient": probes(said["gradient"]), "first": probes(run.moments("exp_avg")), "second": probes(run.moments("exp_avg_sq")),
            "change": probes(change(run.weights(), weights)), "average": probes(change(run.average, average)),
            **codebooks(run.model),
        })
    for key in rows[0]:
        tensors["forced." + key] = np.stack([r[key] for r in rows])

    run = Run(c, start, FREE_LR)
    weights = run.weights()
    losses = [run.step(inputs[i % len(STEPS)], targets[i % len(STEPS)])["losses"] for i in range(FREE)]
    tensors["free.losses"] = np.stack(losses)
    tensors["free.change"], tensors["free.average"] = probes(change(run.weights(), weights)), probes(change(run.average, weights))
    for name, v in codebooks(run.model).items():
        tensors["free." + name] = v.numpy()
    return tensors


def write(path, tensors, meta):
    """The format of safetensors: length of the header, header, bytes."""
    header, data = {"__metadata__": meta}, b""
    for name, t in tensors.items():
        if t.dtype == np.float64:
            t = t.astype("<f4")
        elif t.dtype == np.int64:
            t = t.astype("u1")
        begin, data = len(data), data + t.tobytes()
        kind = {"<f2": "F16", "<f4": "F32", "<i4": "I32", "|u1": "U8"}[t.dtype.str]
        header[name] = {"dtype": kind, "shape": list(t.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def main():
    torch.set_num_threads(1)
    for name, c in VARIANTS.items():
        for seed in range(1000):
            try:
                tensors = fixture(c, PATCHES[name], seed)
                break
            except Close as e:
                print(f"{name}: seed {seed}: {e}", file=sys.stderr)
        else:
            sys.exit(f"{name}: no seed keeps its distance")
        meta = {"model": json.dumps(c), "options": json.dumps({**OPTIONS, "patch": PATCHES[name]})}
        write(f"{sys.argv[1]}/parity-{name}.safetensors", tensors, meta)
        np.set_printoptions(precision=4, suppress=True, linewidth=150)
        print(f"{name}: seed {seed}\n{tensors['forced.losses']}\n{tensors['free.losses']}")


if __name__ == "__main__":
    main()
