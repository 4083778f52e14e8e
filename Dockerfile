# `tune` with everything that it needs. Without TORCH_INDEX pip takes torch's usual build, which on
# Linux holds CUDA; the index that torch's site names for CPU builds makes the image gigabytes smaller.
#
#   docker build -t expertune:0.1.0 .
#   docker run --rm -v expertune:/data expertune:0.1.0 --model demo --vram 60MB -o demo.yaml
#   docker run --rm -v expertune:/data -p 127.0.0.1:8000:8000 expertune:0.1.0 \
#     deploy demo.yaml --host 0.0.0.0
#
# For NVIDIA GPUs (docker run --gpus all); gcc is for triton:
#   docker build -t expertune:0.1.0 --build-arg EXTRAS=all,gpu --build-arg PACKAGES="gcc libc6-dev" .
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS build
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=
ARG EXTRAS=all
ENV PATH=/opt/expertune/bin:$PATH
WORKDIR /source
# g++ compiles the native library in seconds. Without it pip would take the package ziglang, which
# first compiles a C++ library of its own, for minutes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/expertune \
    && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch==${TORCH_VERSION}"
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE ./
COPY engine engine
COPY tuner tuner
COPY dashboard dashboard
COPY studies studies
RUN pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"

FROM python:${PYTHON_VERSION}-slim
ARG PACKAGES=
# tini hands signals on, so that a stop drains also while a model is still being opened.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini ${PACKAGES} \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /data --create-home expertune
COPY --from=build /opt/expertune /opt/expertune
ENV PATH=/opt/expertune/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    XDG_DATA_HOME=/data/share \
    XDG_CACHE_HOME=/data/cache \
    HF_HOME=/data/huggingface \
    HEALTH_PORT=8000
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8000
# For `tune deploy`; `tune service` answers at its own port: -e HEALTH_PORT=8700.
HEALTHCHECK --interval=30s --timeout=5s --start-period=1h --start-interval=10s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"HEALTH_PORT\"]}/healthz', timeout=4)"]
ENTRYPOINT ["tini", "--", "tune"]
CMD ["--help"]
