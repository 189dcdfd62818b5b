# syntax=docker/dockerfile:1
# docker build --target cpu -t adapterd .            docker build --target cuda -t adapterd:cuda .
# docker run --init --read-only --tmpfs /tmp -p 127.0.0.1:50051:50051 -v "$PWD/my-adapters:/adapters:ro" adapterd
#
# Without a tenants file anyone who reaches the port may do everything, which --allow-anonymous says below; published as
# above, that is this machine. Declare tenants for more than one machine:
#   ... -v "$PWD/tenants.toml:/tenants.toml:ro" adapterd serve --host 0.0.0.0 --tenants /tenants.toml --adapters /adapters
# deploy/ has that for compose and Kubernetes. Port 9090 (metrics) is an operator's: publish it to where you scrape from.
#
# Everything is written below /tmp and /var/lib/adapterd, a volume; a disk tier that outlives the container is
#   ... -v adapterd:/var/lib/adapterd adapterd serve ... --disk /var/lib/adapterd/disk
#
# Both targets install the versions of constraints.txt. PIP_EXTRA_ARGS goes to the step that installs torch: name an index
# of CPU-only builds to keep the CUDA libraries out of the cpu image (the cuda target wants the default). Its builds of
# a version sort above those without a suffix, and what it lacks comes from the default index:
#   docker build --target cpu --build-arg PIP_EXTRA_ARGS="--extra-index-url URL" -t adapterd .
# make image-check runs these steps without an engine.
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ARG PIP_EXTRA_ARGS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/adapterd
WORKDIR /src
COPY constraints.txt ./
# hadolint ignore=SC2086
RUN /opt/adapterd/bin/pip install -c constraints.txt ${PIP_EXTRA_ARGS} torch
COPY pyproject.toml README.md ./
COPY adapterd adapterd
COPY adapters_cache adapters_cache
COPY server server
COPY training training
COPY loadtest loadtest
RUN /opt/adapterd/bin/pip install -c constraints.txt '.[demo]'

FROM python:${PYTHON_VERSION}-slim AS runtime
# Downloads from the hub and compiled kernels go below HOME.
ENV PATH=/opt/adapterd/bin:$PATH HOME=/var/lib/adapterd PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
RUN groupadd --system --gid 10001 adapterd && \
    useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/adapterd adapterd && \
    mkdir -p /var/lib/adapterd && \
    chown 10001:10001 /var/lib/adapterd
COPY --from=build /opt/adapterd /opt/adapterd
COPY examples/adapters /adapters
# After its owner is set: a new volume begins as what the image has here.
VOLUME /var/lib/adapterd
USER 10001:10001
EXPOSE 50051 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["adapterd", "health"]
ENTRYPOINT ["adapterd"]
CMD ["serve", "--host", "0.0.0.0", "--http-host", "0.0.0.0", "--allow-anonymous", "--adapters", "/adapters"]

FROM runtime AS cpu

# The CUDA libraries come with torch's default build; the driver comes from the host, through its container toolkit:
#   docker run --gpus all ...
FROM runtime AS cuda
USER 0
# Triton compiles its launcher with the system's compiler when the first kernel runs. Debian's releases keep no older
# version of a package to pin.
# hadolint ignore=DL3008
RUN apt-get update && \
    apt-get install -y --no-install-recommends gcc libc6-dev && \
    rm -rf /var/lib/apt/lists/*
USER 10001:10001
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["serve", "--host", "0.0.0.0", "--http-host", "0.0.0.0", "--allow-anonymous", "--adapters", "/adapters", "--device", "cuda"]
