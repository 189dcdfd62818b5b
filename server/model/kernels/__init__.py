"""The batched adapter operations. `reference` is plain PyTorch on any device and defines the semantics."""
