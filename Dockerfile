# A server of one model, which is mounted at /model.safetensors:
#     docker build -t sparselsh .
#     docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/model.safetensors:/model.safetensors:ro" sparselsh
FROM python:3.13-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev git && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN python -m venv /opt/sparselsh && /opt/sparselsh/bin/pip install --no-cache-dir "/source[serve]"

FROM python:3.13-slim
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/* \
    && useradd --system --no-create-home sparselsh
COPY --from=build /opt/sparselsh /opt/sparselsh
USER sparselsh
EXPOSE 8000
HEALTHCHECK --interval=10s CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
# exec form: SIGTERM of `docker stop` reaches the server, which answers what it has begun
ENTRYPOINT ["/opt/sparselsh/bin/sparselsh", "serve", "/model.safetensors", "--host", "0.0.0.0"]
CMD ["--workers", "2"]
