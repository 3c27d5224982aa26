"""Ray: session, device, resources of the stages, progress actor, metrics."""
