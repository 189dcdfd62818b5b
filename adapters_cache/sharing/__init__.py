"""Where adapters are shared: folders and object stores through fsspec, and the Hugging Face Hub."""
