"""Run the Dockerfile without an engine: every COPY and RUN of a target in a scratch root, then its command.

python -m deploy.check_dockerfile --target cpu [--build-arg NAME=VALUE] [--no-serve] [--keep]

Ends with 0 if every step does, and the command serves, is healthy by the health check, answers for every adapter of the
image and for one of pickled files, and ends with 0 on SIGTERM. What stands for an engine:

- Absolute paths lead into the scratch root. Programs are this machine's, but for python: the root has a copy of the one
  that runs this, where the base image has its own.
- The root of the stage that is built lies at one path all the time, for what pip writes names it. A stage that is done
  lies aside, where only COPY --from finds it.
- Steps that need a distribution or its accounts are left out, and named.
- The command runs with its root mounted read-only but for /tmp and the volumes, and as the image's user, as far as
  whoever runs this may do so; what is missing is named.

dockerfile.py   its instructions and stages
build.py        the steps
container.py    the command
"""
