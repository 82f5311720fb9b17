"""What a model takes on a GPU and what that gives, before there is one.

``shapes`` reads a model's config, ``gpus`` has what vendors publish, ``estimate`` computes. Nothing
here runs a model; nothing here may know the command line.
"""

from bytelm_client.sizing.estimate import EVALUATIONS_PER_BYTE, Figure, Load, figures
from bytelm_client.sizing.gpus import GPUS, Gpu, gpu_named
from bytelm_client.sizing.shapes import PRESETS, ModelShape, of_dtype, shape_in, shape_of

__all__ = [
    "EVALUATIONS_PER_BYTE",
    "GPUS",
    "PRESETS",
    "Figure",
    "Gpu",
    "Load",
    "ModelShape",
    "figures",
    "gpu_named",
    "of_dtype",
    "shape_in",
    "shape_of",
]
