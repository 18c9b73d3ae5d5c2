"""The network: backbones, classifier, affinity head, decoder."""
