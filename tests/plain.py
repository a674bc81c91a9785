"""Runs an exported ONNX file as somebody would who has the file alone: Pillow, NumPy and ONNX Runtime, nothing of ours.

Called as a script: FILE, then images; prints the logits as JSON. What to do with an image it reads off the facts.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepared(image: Image.Image, facts: dict) -> np.ndarray:
    """docs/deployment.md, "What a file knows", in a few lines: bytes (H, W, 3)."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    height, width = facts["stored_size"]
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    image = image.resize((width, height), getattr(Image.Resampling, facts["interpolation"].upper()), box=box)
    height, width = facts["size"]
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def as_input(pixels: np.ndarray, facts: dict) -> np.ndarray:
    if facts["dtype"] == "uint8":
        return pixels[None]
    mean, std = (np.array(facts[name], np.float32) for name in ("mean", "std"))
    return ((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)[None]


def main(file: str, *images: str) -> None:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    facts = {name: json.loads(text) if text[0] in "[{" else text for name, text in found.items()}
    logits = []
    for path in images:
        with Image.open(path) as image:
            x = as_input(prepared(image, facts), facts)
        logits.append(session.run(facts["outputs"], {facts["input"]: x})[0][0].tolist())
    assert "torch" not in sys.modules
    assert "pocketformer" not in sys.modules
    print(json.dumps({"facts": facts, "logits": logits}))


if __name__ == "__main__":
    main(*sys.argv[1:])
