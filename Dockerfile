# Head and workers alike: the wheel in an environment of its own, for a user without rights. NEVER BUILT.
# Build from the root of the project: docker build --tag moray:0.1.0 .
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY cluster cluster
COPY autoscaling autoscaling
COPY monitoring monitoring
COPY deployments deployments
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON} AS environment
# "" for a cluster without GPUs.
ARG EXTRAS="[vllm]"
COPY constraints.txt /constraints.txt
COPY --from=wheel /wheels /wheels
# vLLM pins what it was built with; without it, what the tests ran with is installed.
RUN python -m venv /opt/moray \
    && set -- /wheels/moray-*.whl \
    && if [ -n "$EXTRAS" ]; then /opt/moray/bin/pip install --no-cache-dir "$1$EXTRAS"; \
       else /opt/moray/bin/pip install --no-cache-dir --constraint /constraints.txt "$1"; fi

FROM python:${PYTHON}
LABEL org.opencontainers.image.title="Moray" org.opencontainers.image.licenses="Apache-2.0"
# Triton, which vLLM uses, compiles a launcher at run time.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 moray \
    && useradd --uid 1000 --gid 1000 --create-home moray \
    && install --directory --owner moray --group moray /var/lib/moray
COPY --from=environment /opt/moray /opt/moray
ENV PATH=/opt/moray/bin:$PATH PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /home/moray
# KubeRay gives the command: ray start, as head or as worker.
CMD ["moray", "--help"]
