#!/usr/bin/env bash
# Puts what two tests need beside Python on this machine where it may: Chromium for the pages, Prometheus for the
# metrics. Elsewhere says in one line what to install. Debian's packages, not downloads of their makers: those are
# blocked behind many a firewall.
set -euo pipefail

# package, commands that will do, what is not tested without it
needed() {
    local package=$1 untested=$2 name
    shift 2
    for name in "$@"; do
        command -v "$name" >/dev/null && return
    done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "packages: installing Debian's $package; this is done once and takes a minute or two"
        log=$(mktemp)
        # no service is started: a test starts its own, and systemd is not everywhere
        if { apt-get update && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
            apt-get install -y --no-install-recommends "$package"; } >"$log" 2>&1; then
            rm "$log"
            return
        fi
        tail -n 5 "$log" >&2
        echo "packages: apt-get failed, the whole log is in $log" >&2
    fi
    echo "packages: no $1 here, so $untested not tested: install $package" \
        "(Debian, Ubuntu: apt-get install $package)" >&2
}

needed chromium "the pages are" chromium chromium-browser google-chrome
needed prometheus "metrics are" prometheus
