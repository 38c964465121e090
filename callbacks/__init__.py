"""Lightning callbacks, reached from configs; import them as `r1.callbacks`."""
