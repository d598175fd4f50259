# One image for all that runs: worker (the default command), Flower, exporter, sandbox, `regworker`.

FROM python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv --without-pip /venv
WORKDIR /build
# What it depends on, in a layer that an upgrade of ours leaves as it is. Each file is checked
# against its hash; what builds our package stays out of /venv.
COPY requirements/build.txt requirements/image.txt requirements/
RUN pip --python /venv/bin/python install --require-hashes -r requirements/image.txt \
 && pip install --root-user-action=ignore --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY docs/alerts.md docs/
COPY examples/registrations.ndjson examples/
COPY client client
COPY sandbox sandbox
COPY worker worker
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel ./client . \
 && pip --python /venv/bin/python install --no-index --no-deps --root /package /wheel/*.whl

FROM python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea
# tini hands signals on and reaps orphans, also where nobody says `init: true`.
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
