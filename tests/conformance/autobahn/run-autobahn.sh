#!/usr/bin/env bash
# Autobahn|Testsuite 25.10.1 (fuzzing client) against a WebSocket ECHO endpoint.
#
#   run-autobahn.sh URL [CASES...]
#
# URL    ws://127.0.0.1:PORT/PATH of an endpoint that echoes text and binary messages.
# CASES  case patterns ("1.*" "6.4.1") or a named set; several may be given.  Default: ci
#          ci        groups 1-7 and 10: framing, ping, rsv, opcodes, fragmentation, UTF-8, close
#          limits    group 9: messages up to 16 MiB, 1000 round trips
#          deflate-ci  permessage-deflate, a thin cut of groups 12 and 13
#          deflate   all of groups 12 and 13 (216 cases)
#          all       everything (517 cases)
# Environment: AUTOBAHN_TIMEOUT  seconds for the whole run (default 1800)
# Strict: a case that is non-strict, or whose extension was not negotiated, has failed.
# Installs the suite once into target/autobahn; the report goes to target/autobahn/report.
# Prints "autobahn: X ok, Z failed of N" and the ids that failed.
# Exit 0 iff nothing failed; 1 failures; 2 the suite itself did not run.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
url=${1:?usage: run-autobahn.sh URL [CASES...]}; shift
[ $# -gt 0 ] || set -- ci
work=$(realpath -m "${CARGO_TARGET_DIR:-$here/../../../target}")/autobahn
venv=$work/venv
port=$work/suite
out=$work/report
PY=${PYTHON:-python3}
export PYTHONUTF8=1 PIP_DISABLE_PIP_VERSION_CHECK=1

if [ ! -f "$port/.done" ] || [ "$here/autobahn_py3_port.py" -nt "$port/.done" ] || [ "$here/autobahn-requirements.txt" -nt "$port/.done" ]; then
  {
    mkdir -p "$work"
    [ -x "$venv/bin/pip" ] || "$PY" -m venv --clear "$venv"
    "$venv/bin/pip" install -q 'setuptools<81' wheel
    "$venv/bin/pip" install -q --no-deps --no-build-isolation -r "$here/autobahn-requirements.txt"
    "$venv/bin/python" -c 'import lib2to3' 2>/dev/null || "$venv/bin/pip" install -q fissix
    tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
    "$venv/bin/pip" download -q --no-deps --no-binary autobahntestsuite --no-build-isolation -d "$tmp" 'autobahntestsuite==25.10.1'
    "$venv/bin/python" "$here/autobahn_py3_port.py" "$tmp"/autobahntestsuite-25.10.1.tar.gz "$port"
    touch "$port/.done"
  } >&2 || { echo "autobahn: could not be installed" >&2; exit 2; }
fi

rm -rf "$out"; mkdir -p "$out"
"$venv/bin/python" - "$url" "$out" "$@" > "$out/spec.json" <<'P'
import json, sys
url, out, *cases = sys.argv[1:]
SETS = {"ci": ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"],
        "limits": ["9.*"],
        "deflate": ["12.*", "13.*"],
        # one size of each payload kind, one of each parameter offer, fragmented and not
        "deflate-ci": ["12.1.1", "12.1.3", "12.2.4", "12.3.5", "12.4.6", "12.5.11", "12.1.16"]
                      + [f"13.{j}.{i}" for j in range(1, 8) for i in (3, 5)],
        "all": ["*"]}
pats = [p for c in cases for p in SETS.get(c, c.replace(",", " ").split())]
json.dump({"outdir": out, "servers": [{"agent": "server", "url": url}], "cases": pats,
           "exclude-cases": [], "exclude-agent-cases": {}}, sys.stdout, indent=1)
P
rc=0
PYTHONPATH=$port timeout -k 5 "${AUTOBAHN_TIMEOUT:-1800}" \
  "$venv/bin/python" "$here/autobahn_wstest.py" -m fuzzingclient -s "$out/spec.json" > "$out/wstest.log" 2>&1 &
child=$!; trap 'kill "$child" 2>/dev/null; exit 2' TERM INT
wait "$child" || rc=$?
trap - TERM INT
"$venv/bin/python" - "$out" "$rc" <<'P'
import ast, json, sys, pathlib
out, rc = pathlib.Path(sys.argv[1]), int(sys.argv[2])
log = (out / "wstest.log").read_text(errors="replace")
want = next((ast.literal_eval(l[8:]) for l in log.splitlines() if l.startswith("Cases = [")), None)
if not want:
    sys.stderr.write(log[-2000:] + "\n"); print("autobahn: did not run"); sys.exit(2)
try: got = next(iter(json.load(open(out / "index.json")).values()), {})
except FileNotFoundError: got = {}
ok, bad, info = [], [], 0
for c in want:
    r = got.get(c)
    if r is None: bad.append(f"{c}(not run)"); continue
    b, k = r["behavior"], r["behaviorClose"]
    if b == "UNIMPLEMENTED": bad.append(f"{c}(not negotiated)")
    elif b not in ("OK", "NON-STRICT", "INFORMATIONAL"): bad.append(c)
    elif k in ("FAILED", "UNCLEAN"): bad.append(f"{c}(close {k.lower()})")
    elif b == "NON-STRICT": bad.append(f"{c}(non-strict)")
    elif k in ("WRONG CODE", "FAILED BY CLIENT"): bad.append(f"{c}(close {k.lower()} {r['remoteCloseCode']})")
    else: ok.append(c); info += b == "INFORMATIONAL"
print(f"autobahn: {len(ok)} ok, {len(bad)} failed of {len(want)}")
if bad: print("failed: " + " ".join(bad))
for c in [b.split("(")[0] for b in bad][:10]:
    f = out / f"server_case_{c.replace('.', '_')}.json"
    if f.exists():
        d = json.load(open(f)); print(f"  {c}: {d['result']} / close: {d['resultClose']}")
if rc: bad.append(f"wstest ended with {rc}")
if info: print(f"informational (counted ok): {info}", file=sys.stderr)
if rc: print(f"wstest ended with {rc}, see {out}/wstest.log", file=sys.stderr)
sys.exit(1 if bad else 0)
P
