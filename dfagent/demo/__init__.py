"""The demo: real models through real parts, with answers that are known beforehand."""
