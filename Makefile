# The targets that gpush and go-push have, by cargo and fanwire. `make help` lists them.

FANWIRE = target/release/fanwire
IMAGE  ?= fanwire
URL    ?= ws://127.0.0.1:9992/ws
COUNT  ?= 5000
# The profile with io_uring in it, or `unconfined`: see Dockerfile.
SECCOMP ?= unconfined

.PHONY: help proto build run stress push demo test check import dockerBuild dockerRun

help: ## this list
	@sed -n 's/^\([a-zA-Z]*\):.* ## \(.*\)/  \1\t\2/p' Makefile

proto: ## the generated code; it is part of every build, and needs no protoc
	cargo check

build: ## target/release/fanwire
	cargo build --release --locked

run: build ## the gateway: gpush's socket and proxy in one; go-push's gateway and logic with compat.gopush.enabled
	$(FANWIRE) serve

stress: build ## COUNT clients of URL (EC=1: permessage-deflate), and a publisher, measured
	$(FANWIRE) bench --url $(URL) --connections $(COUNT) $(if $(filter 1 true,$(EC)),--deflate)

push: build ## 500,000 messages of 70 bytes to topic test
	yes "$$(printf '%070d' 0)" | head -n 500000 | $(FANWIRE) pub test -

demo: build ## quotes of 500 symbols
	$(FANWIRE) pub --simulate 500

test: ## all tests
	cargo test --locked

check: ## everything that must hold before a commit
	scripts/check

import: build ## FROM=gpush|go-push FILES='…': their configuration as a fanwire.toml on stdout
	@$(FANWIRE) config import $(FROM) $(FILES)

dockerBuild: ## the image
	docker build -t $(IMAGE) .

# The publishing ports are this machine's alone.
dockerRun: ## a container
	docker run --rm --init --security-opt seccomp=$(SECCOMP) --ulimit nofile=1048576:1048576 \
	  -e FANWIRE_PUBLISH__INSECURE=true \
	  -p 9992:9992 -p 127.0.0.1:10067:10067 -p 127.0.0.1:10068:10068 $(IMAGE)
