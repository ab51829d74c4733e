#!/usr/bin/env python3
"""Puts VGG16 and LPIPS' linear heads into one file for train.perceptual.file.

    python3 integration/reference/lpips_weights.py lpips-vgg16.safetensors FILE...

The files are what torch.save wrote, and hold together

    VGG16                 torchvision's vgg16-397923af.pth, or
    LPIPS' linear heads   the package lpips' weights/v0.1/vgg.pth,

or both of them: torch.save(lpips.LPIPS(net="vgg").state_dict(), "lpips.pth"). The output is by torchvision's names (features.N.weight,
lin0.model.1.weight), in float32. Nothing of a pickle is run. Needs PyTorch 1.13 or later; nothing is downloaded.
"""
import re
import sys

import numpy as np
import torch

import generator


def pick(name):
    """What a tensor is called in the output, by the end of its name, or None."""
    if m := re.search(r"(?:^|\.)(?:features|net\.slice\d)\.(\d+)\.(weight|bias)$", name):
        return f"features.{m[1]}.{m[2]}"
    if m := re.search(r"(?:^|\.)lin(?:s\.)?(\d)\.model\.[01]\.weight$", name):
        return f"lin{m[1]}.model.1.weight"
    return None


def main():
    if len(sys.argv) < 3 or not sys.argv[1].endswith(".safetensors"):
        sys.exit(__doc__)
    out, *paths = sys.argv[1:]
    tensors = {}
    for path in paths:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, t in state.get("state_dict", state).items():
            if key := pick(name):
                a = t.float().numpy().astype("<f4")
                if key in tensors and not np.array_equal(tensors[key], a):
                    sys.exit(f"{path}: {name} differs from what came before it: give one network only")
                tensors[key] = a
    wanted = [f"features.{at}.{kind}" for at in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28) for kind in ("weight", "bias")]
    wanted += [f"lin{i}.model.1.weight" for i in range(5)]
    if missing := [name for name in wanted if name not in tensors]:
        sys.exit(f"not in these files: {', '.join(missing)}")
    generator.write(out, {name: tensors[name] for name in wanted}, {"format": "pt"})
    print(f"{out}: {len(wanted)} tensors")


if __name__ == "__main__":
    main()
