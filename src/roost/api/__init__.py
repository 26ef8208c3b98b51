"""HTTP APIs of our own, a package a version. They translate HTTP to services and back, and nothing else."""
