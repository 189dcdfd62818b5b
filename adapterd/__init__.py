"""Client of an adapterd server. Needs grpcio and protobuf only.

from adapterd import Client

with Client("127.0.0.1:50051") as client:
    reply = client.predict("sst2-sentiment", "a fine film")
    print(reply.results[0].classification.labels[0].label, reply.digest)
"""

from __future__ import annotations

from adapterd.aio import AsyncClient
from adapterd.client import Client
from adapterd.errors import Error
from adapterd.requests import Options, predict_request

__all__ = ["AsyncClient", "Client", "Error", "Options", "predict_request"]
