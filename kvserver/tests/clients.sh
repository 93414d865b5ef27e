#!/bin/sh
# Starts a server and lets stock clients use it: redis-cli, redis-benchmark, redis-py.
#
#   kvserver/tests/clients.sh [path of the kvserver binary]
#
# Ends with exit code 0 if every check passed. A client that is not installed is named and left out, unless
# REQUIRE_CLIENTS=1.
set -eu

bin=${1:-${CARGO_TARGET_DIR:-target}/release/kvserver}
[ -x "$bin" ] || { echo "no binary at $bin: cargo build --release -p kvserver" >&2; exit 2; }

work=$(mktemp -d)
pid=
cleanup() {
    if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap cleanup EXIT

fail() { echo "FAILED: $*" >&2; exit 1; }
missing() {
    [ "${REQUIRE_CLIENTS:-0}" = 0 ] || fail "$1 is not installed"
    echo "left out: $1 is not installed"
}

: >"$work/out"
"$bin" serve --dir "$work/db" --listen 127.0.0.1:0 >"$work/out" 2>"$work/err" &
pid=$!
port=
for _ in $(seq 100); do
    port=$(sed -n 's/.*listening on *[^ ]*:\([0-9]*\).*/\1/p' "$work/out")
    [ -z "$port" ] || break
    kill -0 "$pid" 2>/dev/null || { cat "$work/err" >&2; fail "the server did not start"; }
    sleep 0.1
done
[ -n "$port" ] || fail "the server does not say where it listens"

if command -v redis-cli >/dev/null; then
    cli() { redis-cli -p "$port" "$@"; }
    expect() { # expected, command ...
        want=$1; shift
        got=$(cli "$@")
        [ "$got" = "$want" ] || fail "redis-cli $*: got '$got', expected '$want'"
    }
    expect PONG PING
    expect OK SET greeting hello
    expect hello GET greeting
    expect 1 INCR counter
    expect OK MSET a 1 b 2 c 3
    expect "$(printf 'a\n1\nb\n2')" RANGE a b
    expect "$(printf 'c\n3\nb\n2')" RANGE a c REV LIMIT 2
    expect "" GET nothing
    [ "$(cli -3 GET a)" = 1 ] || fail "redis-cli -3"
    [ "$(cli --scan --pattern 'gree*')" = greeting ] || fail "redis-cli --scan"
    # The mass insertion of redis-cli ends with an empty line and ECHO.
    i=0
    while [ $i -lt 1000 ]; do printf 'SET pipe:%s v\r\n' $i; i=$((i + 1)); done >"$work/pipe"
    cli --pipe <"$work/pipe" | grep -q 'errors: 0, replies: 1000' || fail "redis-cli --pipe"
    expect 1000 COUNTRANGE pipe: pipe:z
    echo "redis-cli: passed"
else
    missing redis-cli
fi

if command -v redis-benchmark >/dev/null; then
    redis-benchmark -p "$port" -t ping,set,get,incr,mset -n "${BENCH_N:-20000}" -r 100000 -P 16 -d 100 --csv \
        >"$work/bench" 2>"$work/bench.err" || { cat "$work/bench.err" >&2; fail "redis-benchmark"; }
    # Its complaints go to standard error; a server it cannot ask for settings is one of them.
    if grep -i -E 'error|warning' "$work/bench.err" "$work/bench"; then fail "redis-benchmark complains"; fi
    for test in SET GET INCR MSET; do grep -q "^\"$test" "$work/bench" || fail "redis-benchmark: no $test"; done
    cut -d, -f1,2 "$work/bench"
    echo "redis-benchmark: passed"
else
    missing redis-benchmark
fi

if command -v python3 >/dev/null && python3 -c 'import redis' 2>/dev/null; then
    python3 "$(dirname "$0")/clients.py" "$port" || fail "redis-py"
    echo "redis-py: passed"
else
    missing redis-py
fi

kill -TERM "$pid"
code=0
wait "$pid" || code=$?
pid=
[ "$code" = 0 ] || { cat "$work/err" >&2; fail "exit code $code after SIGTERM"; }
"$bin" check --dir "$work/db" || fail "check after the clients"
echo "all clients passed"
