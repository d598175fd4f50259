# One image for all that runs: worker (the default command), Flower, exporter, sandbox, `regworker`.

FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv --without-pip /venv
WORKDIR /build
# What it depends on, in a layer that an upgrade of ours leaves as it is: an empty package in the
# place of ours brings it in, and goes again.
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY examples/registrations.ndjson examples/
RUN mkdir worker sandbox \
 && touch worker/__init__.py sandbox/__init__.py \
 && pip --python /venv/bin/python install -c constraints.txt '.[cli,flower,sandbox]' \
 && pip --python /venv/bin/python uninstall -y registration-worker
COPY sandbox sandbox
COPY worker worker
RUN pip --python /venv/bin/python install --no-deps --root /package .

FROM python:3.12-slim
# tini reaps what prefork leaves behind and hands signals on, also where nobody says `init: true`.
# pip is what a build needs; nothing is installed in a container that runs.
RUN apt-get update \
 && apt-get install -y --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/* \
 && python -m pip uninstall -y --root-user-action=ignore pip \
 && groupadd --gid 10001 regworker \
 && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin regworker \
 && install -d -o 10001 -g 10001 /data
COPY --from=build /venv /venv
COPY --from=build /package/venv /venv
WORKDIR /app
COPY celeryconfig.py ./
ENV PATH=/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Numbers: Kubernetes can't tell from a name that it is not root.
USER 10001:10001
# A warm shutdown: what is on the wire may end, nothing new is taken. Give it `stop_grace_period`.
STOPSIGNAL SIGTERM
# It takes half a second of CPU, so it is not asked often, and has time where there is little.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 CMD ["regworker", "health"]
ENTRYPOINT ["tini", "--"]
CMD ["celery", "-A", "worker", "worker"]
