"""Serving a policy to robots. Empty so far."""
