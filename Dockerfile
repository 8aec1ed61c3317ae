# The service on processors:
#   docker build -t sfumato .
#   docker run --rm -p 127.0.0.1:8188:8188 -e SFUMATO_TOKEN=SECRET -v "$PWD/runs:/models:ro" sfumato
# Any other command: docker run --rm -v "$PWD:/work" sfumato sample zoo:toy "a red circle" --out samples
FROM python:3.12-slim-bookworm

# the compiler builds the kernels when they are first used
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/sfumato
COPY pyproject.toml MANIFEST.in README.md LICENSE NOTICE constraints.txt ./
COPY src src
# torch built for processors is a fifth of the size of the usual one: --build-arg TORCH_INDEX=URL names an index of it
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt ".[web,offline]"

RUN useradd --create-home --uid 1000 sfumato && mkdir /work && chown sfumato /work
USER sfumato
WORKDIR /work
EXPOSE 8188
HEALTHCHECK --interval=30s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8188/health', timeout=5)"]
ENTRYPOINT ["sfumato"]
CMD ["serve", "zoo:toy", "--host", "0.0.0.0", "--out", "/work/results"]
