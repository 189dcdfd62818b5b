"""The Open Inference Protocol, whatever carries it: tensors from and to requests and answers. No I/O."""
