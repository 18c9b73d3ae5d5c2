# afactl on an NVIDIA GPU: docker build -f docker/cuda.Dockerfile -t afactl:cuda .
# docker run --rm --gpus all --shm-size 2g -u "$(id -u):$(id -g)" -v "$PWD:/work" afactl:cuda train voc --data VOC2012
# PyPI's torch brings the CUDA runtime with it, so a plain Python image does; the host gives the driver.
FROM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY afactl afactl
COPY presets presets
RUN pip install --no-cache-dir build==1.* && python -m build --wheel --outdir /dist

FROM python:3.12-slim
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir "$(ls /dist/*.whl)[photos,coco,tensorboard]" \
    && rm -r /dist \
    && useradd --create-home --uid 1000 afactl
USER 1000
# A user of another number (-u) has no home: caches lie where anybody may write.
ENV AFACTL_CACHE=/tmp/afactl MPLCONFIGDIR=/tmp/matplotlib HF_HOME=/tmp/huggingface \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
ENTRYPOINT ["afactl"]
CMD ["--help"]
