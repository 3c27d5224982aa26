"""From a source to a planned generation: listings, manifests, differences."""
