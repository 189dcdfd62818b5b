"""The adapterd server: one resident base model, many adapters. docs/structures.md walks along one request."""
