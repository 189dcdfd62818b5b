"""Several gRPC processes on one port in front of one engine process.

front 1..N   wire, admission, tokens, shaping   front.py, remote.py
engine       everything else                    supervisor.py starts the fronts, service.py answers them
between      one socket pair per front          peer.py: calls in both directions; channel.py: frames
"""
