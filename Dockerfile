# syntax=docker/dockerfile:1
# docker build --target cpu -t adapterd .            docker build --target cuda -t adapterd:cuda .
# docker run --read-only --tmpfs /tmp -p 127.0.0.1:50051:50051 -v "$PWD/my-adapters:/adapters:ro" adapterd
#
# Without a tenants file anyone who reaches the port may do everything, which --allow-anonymous says below. Declare tenants
# for more than one machine: ... -v "$PWD/tenants.toml:/tenants.toml:ro" adapterd serve --host 0.0.0.0 --tenants /tenants.toml
#
# Both targets install the versions of constraints.txt. PIP_EXTRA_ARGS goes to the step that installs torch: point it
# to an index of CPU-only builds to keep the CUDA libraries out of the cpu image (the cuda target wants the default).
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
ENV PATH=/opt/adapterd/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
COPY --from=build /opt/adapterd /opt/adapterd
COPY examples/adapters /adapters
RUN useradd --system --uid 10001 --no-create-home adapterd
USER 10001
EXPOSE 50051 9090
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["adapterd", "health"]
ENTRYPOINT ["adapterd"]
CMD ["serve", "--host", "0.0.0.0", "--http-host", "0.0.0.0", "--allow-anonymous", "--adapters", "/adapters"]

FROM runtime AS cpu

# The CUDA libraries come with torch's default build; the driver comes from the host, through its container toolkit.
FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["serve", "--host", "0.0.0.0", "--http-host", "0.0.0.0", "--allow-anonymous", "--adapters", "/adapters", "--device", "cuda"]
