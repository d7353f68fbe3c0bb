# The whole project with its packages at the versions of uv.lock. torch and DALI bring CUDA's libraries along, so a
# plain Debian is enough; the host needs the NVIDIA driver and its container toolkit, or no GPU at all.
#
#   docker build -t mats_ds .
#   docker run --rm --gpus all --shm-size 16g -v "$PWD:/work" mats_ds                # the demo, into ./runs and ./data
#   docker run --rm --gpus all --shm-size 16g -v "$PWD:/work" mats_ds mats pretrain --recipe k400 ...
#
# --shm-size: ranks and the processes that decode exchange data through /dev/shm, where docker gives 64 MB by default.
# A CUDA 12 driver: docker build --build-arg CUDA=cuda12 ...
FROM debian:trixie-slim

ARG CUDA=cuda13

# gcc and Python's headers are for Triton, which torch.compile uses.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/mats_ds

# The packages alone first: a change of the code leaves this layer, of 6 to 8 GB, as it is.
COPY pyproject.toml uv.lock ./
# hadolint ignore=DL3013
RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --disable-pip-version-check uv \
    && .venv/bin/uv export --quiet --frozen --no-emit-project --extra "$CUDA" --output-file /tmp/pins.txt \
    && .venv/bin/uv pip install --no-cache --python .venv/bin/python --require-hashes --compile-bytecode -r /tmp/pins.txt \
    && rm /tmp/pins.txt

COPY . .
RUN .venv/bin/uv pip install --no-cache --python .venv/bin/python --no-deps --no-build-isolation --editable .

# `video` lets NVDEC into the container, without which DALI cannot decode. HOME and USER serve a container that is
# started with --user and a number that /etc/passwd does not know.
ENV PATH=/opt/mats_ds/.venv/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility,video \
    HOME=/tmp \
    USER=mats

WORKDIR /work
CMD ["mats", "demo"]
