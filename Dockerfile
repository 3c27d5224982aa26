# The image of every node, on Kubernetes and in cluster.yaml: the locked Ray and all that it needs.
#   docker build -t registry.example/panoptic:ray-2.60.0 .
FROM rayproject/ray:2.60.0-py311-gpu

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /home/ray/panoptic

# Dependencies first: they change seldom, and are 6 GB.
COPY --chown=ray:users requirements.lock ./
RUN pip install --no-cache-dir uv==0.13.8 \
    && uv pip install --system --no-cache -r requirements.lock

COPY --chown=ray:users pyproject.toml README.md LICENSE ./
COPY --chown=ray:users detr detr
COPY --chown=ray:users pipeline pipeline
COPY --chown=ray:users jobs jobs
RUN uv pip install --system --no-cache --no-deps .

# Where no disk is mounted there, the cache is a folder of the image that any user may write. An idle
# worker waits five minutes for its next fetch or write: Ray ends it after one second where there
# are more than CPUs, and every start costs two seconds of imports.
ENV PANOPTIC_CACHE=/mnt/nvme/cache \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_idle_worker_killing_time_threshold_ms=300000
USER 0
RUN install -d -m 1777 /mnt/nvme /mnt/nvme/cache
USER 1000
CMD ["panoptic", "--help"]
