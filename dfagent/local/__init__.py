"""Real parts on this machine (Dragonfly peers, an S3 server, Triton) for demo, tests and benchmarks."""
