# afactl on the CPU: docker build -f docker/cpu.Dockerfile -t afactl .
# docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/work" afactl predict photos --run runs/mine
FROM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY afactl afactl
COPY presets presets
RUN pip install --no-cache-dir build==1.* && python -m build --wheel --outdir /dist

FROM python:3.12-slim
# Torch and torchvision both from the CPU index: mixed with those of PyPI they do not go together. The newest of both,
# as pip would take them; the wheel says from which version on.
COPY --from=wheel /dist /dist
# hadolint ignore=DL3013
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir "$(ls /dist/*.whl)[photos,coco]" \
    && rm -r /dist \
    && useradd --create-home --uid 1000 afactl
USER 1000
# A user of another number (-u) has no home: caches lie where anybody may write.
ENV AFACTL_CACHE=/tmp/afactl MPLCONFIGDIR=/tmp/matplotlib HF_HOME=/tmp/huggingface
WORKDIR /work
ENTRYPOINT ["afactl"]
CMD ["--help"]
