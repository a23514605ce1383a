"""Transports: direct from the store, through dfdaemon's HTTP proxy, or by dfdaemon's gRPC."""
