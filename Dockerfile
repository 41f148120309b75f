# docker build -t headgate .
# docker run --init -p 8080:8080 -v headgate:/data \
#   -e HEADGATE_AUTH__KEYS='[{"key": "change-me", "name": "me"}]' headgate

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements.lock pyproject.toml README.md ./
COPY gateway gateway
COPY headgate headgate
COPY orchestrator orchestrator
COPY protos protos
# The lock as constraints: its versions, of only what serving needs.
RUN python -m venv /opt/headgate \
 && /opt/headgate/bin/pip install --no-cache-dir --disable-pip-version-check --constraint requirements.lock ".[embedded]"

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home --home-dir /data headgate \
 && install --directory --owner headgate --group headgate --mode 0700 /data
COPY --from=build /opt/headgate /opt/headgate
# Reachable from outside, so keys are required: HEADGATE_AUTH__KEYS. Every setting has such a variable; a file works as well:
# mount it and name it in HEADGATE_CONFIG.
ENV PATH=/opt/headgate/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HEADGATE_SERVER__HOST=0.0.0.0 \
    HEADGATE_SERVER__PORT=8080 \
    HEADGATE_GRPC__PORT=50052 \
    HEADGATE_DATA_DIR=/data \
    HEADGATE_AUTH__MODE=keys
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 8080 50052
HEALTHCHECK --interval=10s --timeout=4s --start-period=60s --retries=3 CMD ["python", "-c", "\
import http.client, os, sys\n\
door = http.client.HTTPConnection('127.0.0.1', int(os.environ['HEADGATE_SERVER__PORT']), timeout=3)\n\
door.request('GET', '/health')\n\
sys.exit(door.getresponse().status != 200)"]
ENTRYPOINT ["headgate"]
CMD ["serve"]
