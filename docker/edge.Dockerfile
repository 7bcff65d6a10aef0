# The Skerry agent in a container, without root. From the repository's root:
#   docker build -f docker/edge.Dockerfile -t skerry-agent .
#   docker build -f docker/edge.Dockerfile -t skerry-agent:torch --build-arg EXTRAS=grpc,mqtt,codecs,flower,torch .
#   docker run -v skerry-agent:/var/lib/skerry-agent skerry-agent join TOKEN
#   docker run -d --restart on-failure --memory 2g -v skerry-agent:/var/lib/skerry-agent skerry-agent run
FROM python:3.11-slim-bookworm AS build
ARG EXTRAS=grpc,mqtt,codecs
COPY protos /src/protos
COPY edge /src/edge
RUN python -m venv /opt/skerry \
    && /opt/skerry/bin/pip install --no-cache-dir \
        --extra-index-url https://download.pytorch.org/whl/cpu /src/protos "/src/edge[$EXTRAS]"

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10002 --home /var/lib/skerry-agent --create-home skerry-agent \
    && chmod 711 /var/lib/skerry-agent
COPY --from=build /opt/skerry /opt/skerry
USER skerry-agent
VOLUME /var/lib/skerry-agent
ENV PATH=/opt/skerry/bin:$PATH PYTHONUNBUFFERED=1 SKERRY_AGENT_HOME=/var/lib/skerry-agent
STOPSIGNAL SIGTERM
ENTRYPOINT ["skerry-agent"]
CMD ["run"]
