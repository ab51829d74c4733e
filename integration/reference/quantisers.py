#!/usr/bin/env python3
"""Writes gpu/vqgan/testdata/parity-quantiser-*.safetensors: what PyTorch makes of the quantisers beside ema, for gpu/vqgan/parity_test.go.

    python3 integration/reference/quantisers.py gpu/vqgan/testdata

The generator and the form of the fixtures are generator.py's; between its two halves is another quantiser, and a codebook2 with residual.
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import generator
from generator import Close, Codebook, Generator, Run

MODEL = {"hidden": 4, "downsample": [4, 4, 2], "embedding": 4, "codes": 12, "norm": "channel", "groups": 4, "padding": "replicate", "decoder": "lean"}
VARIANTS = {
    "quantiser-cosine": {**MODEL, "quantizer": "cosine"},
    "quantiser-fsq": {**MODEL, "quantizer": "fsq", "levels": [5, 4, 2], "embedding": 3, "codes": 40},
    "quantiser-residual": {**MODEL, "quantizer": "residual"},
}
SLOPE = 5e-6  # of elements that a row of probes shows: the least gradient of the first step, in which Adam makes of any gradient its sign
PATCHES = {name: [20, 12, 6] for name in VARIANTS}  # x, y, z


class Sphere(Codebook):
    """Vectors of length 1."""

    @torch.no_grad()
    def update(self, z, codes, decay):
        super().update(z, codes, decay)
        self.embeddings.copy_(F.normalize(self.z_avg, dim=1))


class Scalar(nn.Module):
    """Finite scalar quantisation."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = numbers

    def forward(self, z):
        """Returns codes, q with its straight-through gradient, and how far the nearest channel is from being rounded otherwise."""
        q, codes, step, margin = [], 0, 1, 1.0
        for i, n in enumerate(self.numbers):
            half, offset = (n - 1) * 1.001 / 2, 0.5 * (1 - n % 2)
            shift = np.arctanh(offset / half)
            b = torch.tanh(z[:, i] + shift) * half - offset
            whole = b.detach().round()
            margin = min(margin, (0.5 - (b - whole).abs()).min().item())
            q.append((b + (whole - b).detach()) / (n // 2))
            codes = codes + (whole + n // 2).long() * step
            step *= n
        return codes, torch.stack(q, 1), margin


class Quantised(Generator):
    def __init__(self, c):
        super().__init__(c)
        self.kind = c["quantizer"]
        if self.kind == "cosine":
            self.codebook = Sphere(c["codes"], c["embedding"])
        elif self.kind == "fsq":
            self.codebook = Scalar(c["levels"])
        else:
            self.codebook2 = Codebook(c["codes"], c["embedding"])

    def books(self):
        return {"cosine": [self.codebook], "fsq": [], "residual": [self.codebook, getattr(self, "codebook2", None)]}[self.kind]

    def latents(self, x):
        z = self.pre_vq_conv(self.encoder(x))
        return F.normalize(z, dim=1) if self.kind == "cosine" else z

    def forward(self, x):
        """Returns the reconstruction, the commitment, what each codebook quantised, all codes with those of a latent last, and the margin."""
        z = self.latents(x)
        if self.kind == "fsq":
            codes, q, margin = self.codebook(z)
            return self.decoder(self.post_vq_conv(q)), torch.zeros(()).double(), [], codes, margin
        rest, q, commitment, inputs, codes, margin = z, 0, 0, [], [], 1.0
        for book in self.books():
            found, vectors, near = book(rest)
            inputs.append(rest.detach())
            codes.append(found)
            commitment = commitment + (rest - vectors).square().mean()
            rest, q, margin = rest - vectors, q + vectors, min(margin, near)
        codes = codes[0] if len(codes) == 1 else torch.stack(codes, -1)
        return self.decoder(self.post_vq_conv(z + (q - z).detach())), commitment, inputs, codes, margin


class QuantisedRun(Run):
    def forced(self, k):
        books = [b.embeddings.clone() for b in self.model.books()]
        super().forced(k)
        if self.model.kind == "cosine":  # its vectors keep their length
            self.model.codebook.embeddings.copy_(books[0])

    def step(self, x, target):
        y, commitment, inputs, codes, margin = self.model(x)
        if margin < generator.MARGIN:
            raise Close(f"a latent is {margin:.1e} from having another code")
        if (kink := (y - target).abs().min().item()) < generator.KINK:
            raise Close(f"a voxel is {kink:.1e} from its target")
        l1, l2 = (y - target).abs().mean(), (y - target).square().mean()
        options, loss = generator.OPTIONS, generator.OPTIONS["loss"]
        total = loss["l1"] * l1 + loss["l2"] * l2 + loss["commitment"] * commitment
        self.adam.zero_grad()
        total.backward()
        gradient = {k: p.grad.clone() for k, p in self.model.named_parameters()}
        if self.steps == 0 and (least := min(shown(g) for g in gradient.values())) < SLOPE:
            raise Close(f"a gradient is {least:.1e}")
        size = nn.utils.clip_grad_norm_(self.model.parameters(), options["clip"])
        self.adam.step()
        self.steps += 1
        decay = min(options["ema"], (1 + self.steps) / (10 + self.steps))
        for k, p in self.model.named_parameters():
            self.average[k] = decay * self.average[k] + (1 - decay) * p.detach()
        each = [codes] if codes.dim() == 4 else codes.unbind(-1)
        perplexity = 1.0
        for found in each:
            share = torch.bincount(found.flatten()).double() / found.numel()
            perplexity = perplexity * torch.exp(-torch.special.xlogy(share, share).sum()) ** (1 / len(each))
        for book, z, found in zip(self.model.books(), inputs, each):
            book.update(z, found, options["codebook"]["decay"])
        clipped = (y.clamp(-1, 1) - target.clamp(-1, 1)).square().mean()
        losses = torch.stack([t.detach() for t in (l1, l2, clipped, commitment, total, size, perplexity)])
        return {"losses": losses, "output": y.detach(), "codes": codes, "gradient": gradient}


def shown(g):
    """The least of the elements that probes shows, but for those that no image reaches."""
    some = g.flatten()[np.arange(generator.SAMPLES) * 7919 % g.numel()].abs()
    return some[some > 0].min().item()


def beginning(c, batch):
    """generator.py's, with each codebook near what it is to quantise."""
    model = Quantised(c).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or "final_block" in name:
                p.add_(0.2 * torch.randn_like(p))
            if name.startswith("pre_vq_conv") and c["quantizer"] == "fsq":
                p.mul_(4)  # that more than the middle levels are used
            p.copy_(p.half())
        rest = model.latents(batch)
        for b in model.books():
            rows = rest.movedim(1, -1).flatten(0, -2)
            chosen = rows[torch.randperm(len(rows))[: len(b.N)]]
            vectors = chosen + 0.3 * rows.std(0) * torch.randn_like(chosen)
            if c["quantizer"] == "cosine":
                vectors = F.normalize(vectors, dim=1)
            b.embeddings.copy_(vectors.half())
            b.N.copy_((0.5 + 6 * torch.rand_like(b.N)).half())
            b.z_avg.copy_((b.embeddings * b.N[:, None] * (1 + 0.1 * torch.randn_like(chosen))).half())
            rest = rest - b(rest)[1]
    return model.state_dict()


if __name__ == "__main__":
    generator.VARIANTS, generator.PATCHES = VARIANTS, PATCHES
    generator.FREE_LR = 2e-5  # more of it is chaotic
    generator.Generator, generator.Run, generator.beginning = Quantised, QuantisedRun, beginning
    generator.main()
