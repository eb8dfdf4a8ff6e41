"""Tools for finding out what a pretrained diffusion model knows about the pixels it paints.

from emerdiff_probe import load_model, segment

model = load_model("pocket")
result = segment(model, "photo.png")
result.save("out/photo")
"""

import lazy_loader

# Names and their modules are in __init__.pyi; nothing heavy is imported before it is used (Scientific Python SPEC 1).
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
