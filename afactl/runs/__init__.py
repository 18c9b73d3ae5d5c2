"""What lies on the disk: run folders, checkpoints, weights of others, caches."""
