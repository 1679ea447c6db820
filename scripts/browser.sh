#!/usr/bin/env bash
# Puts a Chromium on this machine for tests/test_page.py where it may; elsewhere says in one line what to install.
# Debian's package, not a build that playwright would download: its downloads are blocked behind many a firewall.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null && exit
done

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "browser: installing Debian's chromium; this is done once and takes a minute or two"
    log=$(mktemp)
    if { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends chromium; } \
        >"$log" 2>&1; then
        rm "$log"
        exit
    fi
    tail -n 5 "$log" >&2
    echo "browser: apt-get failed, the whole log is in $log" >&2
fi
echo "browser: no Chromium here, so the page is not tested: install chromium" \
    "(Debian, Ubuntu: apt-get install chromium; Fedora: dnf install chromium)" >&2
