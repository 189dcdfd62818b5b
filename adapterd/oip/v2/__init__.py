"""Version 2; see protos/adapterd/oip/v2/inference.proto."""
