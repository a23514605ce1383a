"""What runs for months beside Triton."""
