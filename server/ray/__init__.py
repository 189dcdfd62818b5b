"""adapterd on Ray: Serve places, watches, replaces and scales complete servers. Callers reach them without it.

guard.py        a server that stops when whoever started it is gone
child.py        such a server, seen from the Ray worker that starts it
members.py      which replicas there are: an actor that all of them tell every second that they live
beats.py        a replica's word to it, whatever its server is busy with
targets.py      where Prometheus finds their metrics
disk.py         a folder of the disk tier for each
scaling.py      how many there are to be
replica.py      what Serve runs: a child, its word to the members, its health for Serve
plan.py         what is asked for
application.py  the Serve application
"""
