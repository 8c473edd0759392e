"""From a checkpoint to an artifact, and the cache of what was compiled before."""
