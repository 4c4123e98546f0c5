# A service of one bundle:  docker build -t recommender . && docker run -p 8000:8000 -v "$PWD/bundle:/bundle:ro" -v events:/events recommender
# PyTorch without CUDA makes it a tenth as large: --build-arg PIP_EXTRA_INDEX_URL=<the index of PyTorch's CPU wheels>
FROM python:3.12-slim

ARG PIP_EXTRA_INDEX_URL
WORKDIR /app
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src ./src
RUN pip install --no-cache-dir -c constraints.txt ".[serve,index,redis]" \
    && useradd --create-home --uid 1000 isthmus \
    && mkdir /events \
    && chown isthmus /events

USER 1000
VOLUME /events
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["isthmus", "serve", "/bundle", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--histories", "/events/events.db"]
