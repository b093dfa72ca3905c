# What the scripts of this folder share. Sourced, not run.
#
# Every server script has one shape:
#   NAME start --folder DIR [--nodes N] [--until PID] [more]   starts, returns when ready, prints a line a node: NAME HOST:PORT PID
#   NAME start --folder DIR --node K                           starts node K of that folder again
#   NAME kill  --folder DIR --node K                           SIGKILL to node K
#   NAME stop  --folder DIR                                    stops what that folder's pid files name, and nothing else
#   NAME fetch                                                 only fetches what is needed
# A folder holds one directory a node (`node1`, …) with `pid`, `address`, `log` and the server's own files. With `--until PID` the
# servers are stopped and the folder removed when that process has ended, however it ended.
# What is downloaded is kept in ${XDG_CACHE_HOME:-~/.cache}/esh3ar/stack, outside the checkout.

set -euo pipefail
stack_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$stack_here/../../scripts/need.sh"
cache_root="${XDG_CACHE_HOME:-$HOME/.cache}/esh3ar/stack"

# ---- arguments -------------------------------------------------------------------------------------------------------

# stack_arguments "$@": sets verb, folder, nodes, node, until and, for what it does not know, the array more.
stack_arguments() {
  verb=${1:-} folder='' nodes=1 node='' until='' more=()
  [ $# -gt 0 ] && shift
  while [ $# -gt 0 ]; do
    case $1 in
      --folder | --nodes | --node | --until)
        [ $# -ge 2 ] || fail "$1 needs a value"
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
      *) more+=("$1") && shift ;;
    esac
  done
  case $verb in
    fetch) ;;
    start | stop | kill) [ -n "$folder" ] || fail "$verb needs --folder DIR" ;;
    *) fail "use: $(basename "$0") start|stop|kill|fetch --folder DIR [--nodes N] [--node K] [--until PID]" ;;
  esac
  if [ "$verb" = start ] && [ -z "$node" ]; then mkdir -p "$folder"; fi
  if [ -n "$folder" ] && [ "$verb" != fetch ]; then
    [ -d "$folder" ] || fail "there is no folder $folder: nothing was started there"
    folder=$(cd "$folder" && pwd)
  fi
  case $nodes in [1-9]) ;; *) fail "--nodes is to be 1 to 9, not $nodes" ;; esac
}

# ---- ports -----------------------------------------------------------------------------------------------------------

# free_ports N: prints N free ports of this machine, one a line. They lie below the ports that the kernel gives to clients, and
# are kept from other callers of this function for two minutes, so that scripts that run at once do not meet.
free_ports() {
  local wanted=$1 given=0 port kept="${TMPDIR:-/tmp}/esh3ar-ports-$(id -u)"
  mkdir -p "$kept"
  find "$kept" -mindepth 1 -maxdepth 1 -type d -mmin +2 -exec rmdir {} + 2>/dev/null || true
  for _ in $(seq 1 2000); do
    [ "$given" -lt "$wanted" ] || return 0
    port=$((20000 + (RANDOM * 32768 + RANDOM) % 12000))
    # A port that any socket of this machine has is not free: the hexadecimal number stands in these tables.
    if grep -qi ":$(printf %04X "$port") " /proc/net/tcp /proc/net/tcp6 2>/dev/null; then continue; fi
    mkdir "$kept/$port" 2>/dev/null || continue
    echo "$port"
    given=$((given + 1))
  done
  [ "$given" -eq "$wanted" ] || fail "no free ports were found"
}

# answers HOST PORT: whether something listens there.
answers() { (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null; }

# ---- waiting and processes -------------------------------------------------------------------------------------------

# waits SECONDS COMMAND...: until the command succeeds; fails after so many seconds.
waits() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}

# look PID: prints the state of a process, and when it began, in ticks since boot: with its id that names one process for good, also
# after the id is given again. Read once: between two looks a zombie may be gone.
look() {
  local stat
  { read -r stat <"/proc/$1/stat"; } 2>/dev/null || return 1
  # shellcheck disable=SC2086
  set -- ${stat##*) }
  echo "$1 ${20}"
}

# node_pid K: prints the id of node K's process while it lives.
node_pid() {
  local pid when state birth
  read -r pid when 2>/dev/null <"$folder/node$1/pid" || return 1
  read -r state birth <<<"$(look "$pid")"
  [ -n "$when" ] && [ "$birth" = "$when" ] || return 1
  # A zombie has ended.
  case "$state" in Z | X) return 1 ;; esac
  echo "$pid"
}
node_lives() { node_pid "$1" >/dev/null; }
node_ended() { ! node_pid "$1" >/dev/null; }

# run_node K COMMAND...: starts node K in the background, its output appended to the node's log, its id in its pid file. It
# stays in the caller's process group, so that a deadline on a test ends it too.
run_node() {
  local at="$folder/node$1" state birth
  shift
  mkdir -p "$at"
  nohup "$@" >>"$at/log" 2>&1 </dev/null &
  read -r state birth <<<"$(look $!)"
  echo "$! $birth" >"$at/pid"
  disown
}

# ready_node K SECONDS COMMAND...: waits until the command succeeds; fails at once when the process ends, with its last lines.
ready_node() {
  local k=$1 seconds=$2 deadline=$((SECONDS + $2))
  shift 2
  until "$@"; do
    if node_ended "$k" || [ "$SECONDS" -ge "$deadline" ]; then
      tail -n 15 "$folder/node$k/log" >&2 || true
      local why="was not ready within ${seconds}s"
      node_ended "$k" && why="has ended"
      stop_nodes 5
      fail "node $k $why; its log is $folder/node$k/log"
    fi
    sleep 0.1
  done
}

# each_node: prints the numbers of the folder's nodes.
each_node() { find "$folder" -mindepth 1 -maxdepth 1 -type d -name 'node[1-9]' -printf '%f\n' | sed 's/node//' | sort; }

# print_nodes NAME: the line of each node that lives.
print_nodes() {
  local k
  for k in $(each_node); do
    node_lives "$k" && echo "$1 $(cat "$folder/node$k/address") $(node_pid "$k")"
  done
  return 0
}

# stop_nodes SECONDS: SIGTERM to all, and SIGKILL to those that are still there after so many seconds.
stop_nodes() {
  local k pid
  for k in $(each_node); do pid=$(node_pid "$k") && kill "$pid" 2>/dev/null || true; done
  for k in $(each_node); do
    waits "$1" node_ended "$k" || { pid=$(node_pid "$k") && kill -9 "$pid" 2>/dev/null || true; }
    waits 5 node_ended "$k" || fail "node $k does not end"
    rm -f "$folder/node$k/pid"
  done
}

# kill_node K
kill_node() {
  local pid
  pid=$(node_pid "$1") || fail "node $1 of $folder does not run"
  kill -9 "$pid"
  waits 10 node_ended "$1" || fail "node $1 does not end"
}

# watch_until SCRIPT: when the process of --until has ended, stops the servers and removes the folder; also where a deadline ended
# the whole process group, which is why it ignores the signal that deadlines send.
watch_until() {
  [ -n "$until" ] || return 0
  nohup bash -c 'trap "" TERM INT; tail --pid="$1" -f /dev/null; "$2" stop --folder "$3" && rm -rf "$3"' watch "$until" "$1" "$folder" >/dev/null 2>&1 </dev/null &
  disown
}

# ---- fetching --------------------------------------------------------------------------------------------------------

# need_java: Java 17 or newer.
need_java() { need_packages java=openjdk-17-jre-headless; }

# jars NAME-VERSION GROUP:ARTIFACT:VERSION...: prints the folder of these jars and all they need, fetching them from Maven
# Central when they are not in the cache. Two callers at once do not meet.
jars() {
  local at="$cache_root/$1" lock
  shift
  mkdir -p "$cache_root"
  exec {lock}>"$at.lock"
  flock "$lock"
  if [ ! -f "$at/complete" ]; then
    need_packages mvn=maven java=openjdk-17-jre-headless >&2
    say "fetching $(basename "$at") from Maven Central"
    local work dependency group artifact version
    work=$(mktemp -d "$at.XXXXXX")
    {
      echo '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
      echo '<groupId>esh3ar</groupId><artifactId>stack</artifactId><version>1</version><dependencies>'
      for dependency in "$@"; do
        IFS=: read -r group artifact version <<<"$dependency"
        echo "<dependency><groupId>$group</groupId><artifactId>$artifact</artifactId><version>$version</version></dependency>"
      done
      echo '</dependencies></project>'
    } >"$work/pom.xml"
    if ! mvn -q -B -f "$work/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
      -DincludeScope=runtime -DoutputDirectory="$work/lib" >"$work/mvn.log" 2>&1; then
      tail -n 20 "$work/mvn.log" >&2
      rm -rf "$work"
      fail "$(basename "$at") could not be fetched from Maven Central: is there a network?"
    fi
    touch "$work/complete"
    rm -rf "$at" && mv "$work" "$at"
  fi
  flock -u "$lock"
  echo "$at/lib"
}

# class_path LIB: its jars in one fixed order: an archive of classes holds for exactly one class path.
class_path() { find "$1" -name '*.jar' | LC_ALL=C sort | paste -sd:; }

# java_name: names this machine's Java in file names.
java_name() { java -version 2>&1 | sed -nE '1s/.*"([^"]+)".*/\1/p'; }
