# Everyday commands. `just` lists them; `.ci/run` runs what CI runs, and these are its steps.

default:
    @just --list

# Reformat everything
fmt:
    cargo fmt --all

# Everything below, as CI does it
ci:
    .ci/run

# Lint; warnings are errors
clippy:
    .ci/run clippy

# Unit, property and whole-network tests
test:
    .ci/run test

# API documentation; broken links are errors
docs:
    .ci/run docs

# Licences, sources, banned and doubled crates, advisories
deny:
    CI_ADVISORIES=1 .ci/run deny

# Real processes on loopback: what must work, what must fail, and how it says so
smoke:
    .ci/run build smoke

# Real processes on loopback: relays are killed, and no message is lost, doubled or out of order
kills:
    .ci/run build kills

# What packets cost in a relay, beside plain UDP and a minimal relay on quinn
bench *ARGS:
    cargo build --release --workspace
    target/release/tradewind-bench data-plane {{ARGS}}

# A whole network on this machine
lab *ARGS:
    cargo run --release -- lab {{ARGS}}

# Chaos in virtual time: N seeds from FROM on; a failing one prints the command that replays it
chaos N="20" FROM="1":
    cargo build --release -p tradewind-cli
    .ci/chaos {{N}} {{FROM}}
