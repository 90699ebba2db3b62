# The bridge for PostgreSQL and Redis servers of their own. The locked packages have the extras too, `embedded` among
# them for its pg_dump, which must not be older than the server.
#
# Each stage is one layer of the result, so that a change of the source moves a few hundred kilobytes and not the
# packages: those change with requirements-image.lock only.

FROM python:3.13.16-slim-bookworm AS packages
ENV PATH=/opt/chat-bridge/bin:$PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
RUN python -m venv --without-pip /opt/chat-bridge
COPY requirements-image.lock ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /usr/local/bin/pip --python /opt/chat-bridge/bin/python install --require-hashes --requirement requirements-image.lock

# The lock file holds the build backend too, which the program does not need.
FROM packages AS runtime-packages
RUN /usr/local/bin/pip --python /opt/chat-bridge/bin/python uninstall --yes uv_build

FROM packages AS program
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN /usr/local/bin/pip --python /opt/chat-bridge/bin/python install \
      --no-deps --no-build-isolation --no-cache-dir --prefix /program .

FROM python:3.13.16-slim-bookworm
RUN pip uninstall --yes --root-user-action ignore pip \
 && rm -r /usr/local/lib/python3.13/ensurepip \
 && useradd --uid 10001 --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin chat-bridge
COPY --from=runtime-packages /opt/chat-bridge /opt/chat-bridge
COPY --from=program /program /opt/chat-bridge

# The root file system may be read-only: only /tmp is written, by backups, imports and files of more than 1 MB on their way
# into the bucket, so mount a tmpfs there.
# DATABASE_WAIT_SECONDS: containers start in any order.
ENV PATH=/opt/chat-bridge/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CHAT_BRIDGE_HOST=0.0.0.0 \
    PORT=3000 \
    DATABASE_WAIT_SECONDS=60
USER 10001:10001
WORKDIR /
EXPOSE 3000
STOPSIGNAL SIGTERM
# Alive, not ready: Swarm kills what is unhealthy, which would not bring a lost database back.
HEALTHCHECK --interval=10s --timeout=5s --start-period=90s --start-interval=1s --retries=3 \
  CMD ["python", "-c", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["chat-bridge"]
CMD ["serve"]

ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="agoric-chat-bridge" \
      org.opencontainers.image.description="Any chat platform in front of any AI agent; every message kept." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
