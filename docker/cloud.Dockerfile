# The Skerry coordinator with mosquitto beside it. From the repository's root:
#   docker build -f docker/cloud.Dockerfile -t skerry-coordinator .
#   docker run -v skerry:/var/lib/skerry -p 8470:8470 -p 8471:8471 -p 8883:8883 \
#     skerry-coordinator --public-host fleet.example.com
FROM python:3.11-slim-bookworm AS build
COPY protos /src/protos
COPY cloud /src/cloud
RUN python -m venv /opt/skerry \
    && /opt/skerry/bin/pip install --no-cache-dir /src/protos '/src/cloud[postgres,objects]'

FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends mosquitto \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home /var/lib/skerry --create-home skerry \
    && chmod 700 /var/lib/skerry
COPY --from=build /opt/skerry /opt/skerry
USER skerry
VOLUME /var/lib/skerry
EXPOSE 8470 8471 8883
ENV PATH=/opt/skerry/bin:$PATH PYTHONUNBUFFERED=1
STOPSIGNAL SIGTERM
ENTRYPOINT ["skerry-coordinator", "--home", "/var/lib/skerry/coordinator", "--host", "0.0.0.0"]
