"""The HTTP port: metrics, the Open Inference Protocol and embeddings as JSON, the console.

It runs on an event loop and a thread of its own, so that a scrape waits for no request and no request for a scrape.
What concerns the engine is handed over to the server's own loop (`bridge.py`).
"""
