# Fanwire in a container: `make dockerBuild`, `make dockerRun`.
#
# io_uring: Docker's default seccomp profile has refused it since version 25 (2023); so does containerd's. Fanwire then says so and
# ends with exit code 78. Allow it for this container alone, by the default profile with three system calls more:
#
#   curl -sSLO https://raw.githubusercontent.com/moby/profiles/main/seccomp/default.json
#   jq '.syscalls += [{"names": ["io_uring_setup", "io_uring_enter", "io_uring_register"], "action": "SCMP_ACT_ALLOW"}]' \
#     default.json > io_uring.json
#   docker run --security-opt seccomp=io_uring.json …
#
# `--security-opt seccomp=unconfined` does too, and allows all else as well. The host's `sysctl kernel.io_uring_disabled` must be 0.
#
# Connections: each takes a file descriptor of its shard's ring: `--ulimit nofile=1048576:1048576`.
# Publishers: from outside the container they are not on loopback, so the ports for them need a token each call:
# `-v …/tokens:/etc/fanwire/tokens:ro -e FANWIRE_PUBLISH__TOKENS_FILE=/etc/fanwire/tokens`, or
# `-e FANWIRE_PUBLISH__INSECURE=true` where only those who may publish reach them.

ARG RUST=1.93
FROM rust:${RUST}-slim-trixie AS build
WORKDIR /fanwire
COPY . .
RUN cargo build --release --locked && strip --strip-debug target/release/fanwire

FROM debian:trixie-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --no-create-home --shell /usr/sbin/nologin fanwire
COPY --from=build /fanwire/target/release/fanwire /usr/local/bin/fanwire
USER fanwire
ENV FANWIRE_PUBLISH__GRPC_ADDRESS=0.0.0.0:10067 FANWIRE_PUBLISH__HTTP_ADDRESS=0.0.0.0:10068
# Subscribers; gRPC publish; HTTP publish, /metrics, /healthz, /readyz.
EXPOSE 9992 10067 10068
STOPSIGNAL SIGTERM
ENTRYPOINT ["fanwire"]
CMD ["serve"]
