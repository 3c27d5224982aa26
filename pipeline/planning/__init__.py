"""What is to be computed: listings, manifests, generations."""
