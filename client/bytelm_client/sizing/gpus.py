"""GPUs, as their vendor's data sheets describe them.

Nothing here was measured.
"""

from dataclasses import dataclass

from bytelm.errors import InputError


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: what it is called here.
        full_name: which one it is.
        memory: bytes.
        bandwidth: of its memory, bytes/s.
        flops: of its tensor cores with bfloat16, without sparsity, 1/s.
        link: of its connection to the host, one way, bytes/s.
    """

    name: str
    full_name: str
    memory: float
    bandwidth: float
    flops: float
    link: float


def _gpu(name: str, full_name: str, gb: float, gb_s: float, tflops: float, link_gb_s: float) -> Gpu:
    return Gpu(name, full_name, gb * 1e9, gb_s * 1e9, tflops * 1e12, link_gb_s * 1e9)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("B200", "NVIDIA B200 SXM 180 GB", 180, 7700, 2250, 64),
        _gpu("H200", "NVIDIA H200 SXM 141 GB", 141, 4800, 989, 64),
        _gpu("H100", "NVIDIA H100 SXM 80 GB", 80, 3350, 989, 64),
        _gpu("H100-PCIE", "NVIDIA H100 PCIe 80 GB", 80, 2000, 756, 64),
        _gpu("A100-80", "NVIDIA A100 SXM 80 GB", 80, 2039, 312, 32),
        _gpu("A100-40", "NVIDIA A100 SXM 40 GB", 40, 1555, 312, 32),
        _gpu("L40S", "NVIDIA L40S 48 GB", 48, 864, 362, 32),
        _gpu("L4", "NVIDIA L4 24 GB", 24, 300, 121, 32),
        _gpu("RTX4090", "NVIDIA GeForce RTX 4090 24 GB", 24, 1008, 165, 32),
    )
}
"""All that are known, by name."""


def gpu_named(name: str) -> Gpu:
    """A GPU by its name, however it is written.

    Raises:
        InputError: when it is not known; names those that are.
    """
    plain = name.upper().replace(" ", "").replace("_", "-")
    if plain not in GPUS:
        raise InputError(f"--gpu: {name!r} is not known; these are: {', '.join(GPUS)}")
    return GPUS[plain]
