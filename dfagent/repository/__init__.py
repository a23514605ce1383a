"""Model repositories: scan, plan, materialise."""
