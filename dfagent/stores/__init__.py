"""Object stores: list a repository, sign a URL for each object."""
