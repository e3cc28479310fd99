"""What happens before a training: lists of others become manifests, and manifests are checked."""
