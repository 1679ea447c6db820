#!/usr/bin/env bash
# Install what two tests need besides Python: Chromium for the pages, Prometheus for the metrics. Without root or apt-get
# it only prints what to install. It uses Debian's packages because firewalls often block other downloads.
set -euo pipefail

# needed PACKAGE UNTESTED COMMAND...: install PACKAGE unless one of the commands exists
needed() {
    local package=$1 untested=$2 name
    shift 2
    for name in "$@"; do
        command -v "$name" >/dev/null && return
    done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "packages: installing Debian's $package; this happens once and takes a minute or two"
        log=$(mktemp)
        # start no service: the tests start their own
        if { apt-get update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
            apt-get install -y --no-install-recommends "$package"; } >"$log" 2>&1; then
            rm "$log"
            return
        fi
        tail -n 5 "$log" >&2
        echo "packages: apt-get failed, see $log" >&2
    fi
    echo "packages: without $1, $untested not tested: install $package" \
        "(Debian, Ubuntu: apt-get install $package)" >&2
}

needed chromium "the pages are" chromium chromium-browser google-chrome
needed prometheus "metrics are" prometheus
