"""The client runs where only grpcio and protobuf are installed."""

from __future__ import annotations

import subprocess
import sys

# Everything installed but grpcio (and the typing_extensions it requires) and protobuf is made unimportable.
PROGRAM = """
import sys
ALLOWED = {"adapterd", "grpc", "google", "typing_extensions"} | set(sys.stdlib_module_names)
class Block:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED or name.startswith(("google.rpc", "google.api")):
            raise ImportError(f"{name} is not part of a client's installation")
sys.meta_path.insert(0, Block())
from adapterd import AsyncClient, Client, Error, predict_request
import adapterd.v1.inference_pb2_grpc, adapterd.v1.adapters_pb2_grpc
request = predict_request("a", "text", top_k=1)
with Client("127.0.0.1:1", max_retries=0) as client:
    try:
        client.predict("a", "text", timeout=5)
    except Error as error:
        print(error.code.name)
"""


def test_the_client_needs_grpcio_and_protobuf_only() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "UNAVAILABLE", done.stderr
