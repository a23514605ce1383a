"""Triton Inference Server: its client and its local process."""
