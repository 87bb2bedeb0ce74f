# minimind-jax for NVIDIA GPUs. The wheels bring CUDA 12; the machine needs the NVIDIA container toolkit and a driver of
# 525 or newer (JAX's installation guide: "must be >= 525 for CUDA 12 on Linux").
#
#   docker build -t minimind-jax --build-arg UID=$(id -u) .
#   docker build -t minimind-jax:cpu --build-arg UID=$(id -u) --build-arg REQUIREMENTS=requirements.txt .    any laptop
#
#   docker run --rm -it --init --gpus all --shm-size=8g --stop-timeout 120 \
#     -v "$PWD/dataset:/workspace/dataset" -v "$PWD/out:/workspace/out" -v minimind-cache:/cache \
#     minimind-jax python train.py --config configs/pretrain.py
#
# NCCL moves data between GPUs through /dev/shm, of which docker gives 64 MB unless --shm-size says more. `docker stop`
# sends SIGTERM: the run saves and ends, within --stop-timeout seconds.
FROM python:3.11-slim

ARG REQUIREMENTS=requirements-cuda.txt
ARG UID=1000

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    XDG_CACHE_HOME=/cache \
    XLA_PYTHON_CLIENT_MEM_FRACTION=0.9

# Mounted directories belong to whoever has this UID outside.
RUN useradd --create-home --uid ${UID} minimind \
    && install -d -o minimind -g minimind /workspace /workspace/dataset /workspace/out /cache

WORKDIR /workspace

# Before the code: it changes often, these layers of some GB do not.
COPY requirements.txt requirements-cuda.txt ./
RUN python -m pip install -r ${REQUIREMENTS}

COPY --chown=minimind:minimind . .

USER minimind

CMD ["bash"]
