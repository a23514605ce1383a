"""P2P-accelerated model distribution agent for NVIDIA Triton Inference Server."""

__version__ = "0.1.0"
