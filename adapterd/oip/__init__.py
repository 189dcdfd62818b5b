"""The Open Inference Protocol as messages: generated, under a package of its own."""
