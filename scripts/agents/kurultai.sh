# shellcheck shell=sh
# Agent side of the Kurultai worker protocol, version 1 (kurultai-protocol(7)), for persistent agents in POSIX sh.
#
#   #!/bin/sh
#   . /usr/share/kurultai/agents/kurultai.sh
#   handle_task() { wc -c; }            # payload on stdin, result on stdout, non-zero exit: failed
#   kurultai_serve
#
# handle_task finds KURULTAI_TASK_ID, KURULTAI_REQUEST_ID, KURULTAI_ATTEMPT, KURULTAI_PRIORITY and KURULTAI_PAYLOAD_TYPE
# (json or raw) in its environment, and the shell variable KURULTAI_CHECKPOINT (JSON text, empty if none; it may be longer
# than an environment can hold). A raw payload comes as its bytes, a JSON payload as JSON text. The last line of stderr is
# the error of a failed task; exit status 75 (EX_TEMPFAIL) means that trying again may help. Set before kurultai_serve:
#   KURULTAI_RESULT=json      stdout is one JSON value, not bytes
#   KURULTAI_CHECKPOINTS=1    the handler gives checkpoints to kurultai_progress and goes on from KURULTAI_CHECKPOINT
#
# What sh cannot do: the loop is the only reader, so the handler runs as a child of it and learns of a CANCEL or PREEMPT
# only as a TERM to it and all its children; traps of handle_task itself have to be quick, KILL follows. GC is answered at
# the task's end. Children that handle_task leaves behind must not keep its stderr open, the task lasts as long as it is.
# read(1) of sh takes one byte a system call: for large inline payloads and many small tasks use another language.
#
# Needs awk, base64, cat, mkfifo, mktemp, mv, rm, sleep, tr, wc: coreutils or busybox.

# Reads a protocol line; prints taskId, attempt, priority, requestId, payloadType, payloadPath, checkpoint a line, or with
# -v want=payload the payload: a raw one decoded, a JSON one as it is.
kurultai_fields() {
    LC_ALL=C awk -v want="$1" '
    function skip_string(s,   n) {          # length of the JSON string at the start of s
        n = match(s, /^"([^"\\]|\\.)*"/); return n ? RLENGTH : length(s)
    }
    function skip_value(s,   at, depth, c, rest) {
        if (substr(s, 1, 1) == "\"") return skip_string(s)
        if (s !~ /^[{[]/) { match(s, /^[^,}]*/); return RLENGTH }
        at = 0; depth = 0
        while (at < length(s)) {
            rest = substr(s, at + 1)
            if (!match(rest, /[]["{}]/)) return length(s)
            c = substr(rest, RSTART, 1); at += RSTART
            if (c == "\"") at += skip_string(substr(rest, RSTART)) - 1
            else if (c == "{" || c == "[") depth++
            else if (--depth == 0) return at
        }
        return at
    }
    function hex(s,   i, n) {
        for (i = 1; i <= 4; i++) n = n * 16 + index("0123456789abcdef", tolower(substr(s, i, 1))) - 1
        return n
    }
    function utf8(n) {
        if (n < 128) return sprintf("%c", n)
        if (n < 2048) return sprintf("%c%c", 192 + int(n / 64), 128 + n % 64)
        if (n < 65536) return sprintf("%c%c%c", 224 + int(n / 4096), 128 + int(n / 64) % 64, 128 + n % 64)
        return sprintf("%c%c%c%c", 240 + int(n / 262144), 128 + int(n / 4096) % 64, 128 + int(n / 64) % 64, 128 + n % 64)
    }
    function print_decoded(s,   c, n, low) {  # s without its quotes
        while (match(s, /\\/)) {
            printf "%s", substr(s, 1, RSTART - 1)
            c = substr(s, RSTART + 1, 1); s = substr(s, RSTART + 2)
            if (c == "u") {
                n = hex(s); s = substr(s, 5)
                if (n >= 55296 && n < 56320 && substr(s, 1, 2) == "\\u") {
                    low = hex(substr(s, 3)); s = substr(s, 7)
                    n = 65536 + (n - 55296) * 1024 + low - 56320
                }
                if (n == 0) printf "%c", 0
                else printf "%s", utf8(n)
            } else if (c == "n") printf "\n"
            else if (c == "t") printf "\t"
            else if (c == "r") printf "\r"
            else if (c == "b") printf "\b"
            else if (c == "f") printf "\f"
            else printf "%s", c
        }
        printf "%s", s
    }
    {
        line = substr($0, 2)
        while (match(line, /^[ ,]*"[^"]*" *: */)) {
            key = substr(line, 1, RLENGTH); line = substr(line, RLENGTH + 1)
            gsub(/[ ,":]/, "", key)
            if (key == "payload") {          # the last field of its line
                sub(/ *} *$/, "", line); payload = line; break
            }
            n = skip_value(line); value[key] = substr(line, 1, n); line = substr(line, n + 1)
        }
        for (key in value) if (key != "checkpoint" && value[key] ~ /^"/) value[key] = substr(value[key], 2, length(value[key]) - 2)
        if (want == "payload") {
            if (value["payloadType"] == "raw") print_decoded(substr(payload, 2, length(payload) - 2))
            else printf "%s", payload
        } else {
            print value["taskId"]; print value["attempt"]; print value["priority"]; print value["requestId"]
            print value["payloadType"]; print_decoded(value["payloadPath"]); print ""; print value["checkpoint"]
        }
    }'
}

# kurultai_json_string TEXT: prints it as a JSON string, quotes included. Bytes that are no UTF-8 become "?".
kurultai_json_string() {
    # Why the list by hand: ranges depend on the locale. In awk brackets no bracket is escaped: awks differ there.
    case $1 in
    *[!abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789\ .,:/_=+@%-]*) ;;
    *) printf '"%s"' "$1"; return ;;
    esac
    printf '%s\n' "$1" | LC_ALL=C awk '
    function clean(s,   out) {
        out = ""
        while (s != "") {
            if (match(s, /^("|\\)/)) { out = out "\\" substr(s, 1, 1); s = substr(s, 2) }
            else if (match(s, /^\t/)) { out = out "\\t"; s = substr(s, 2) }
            else if (match(s, /^\r/)) { out = out "\\r"; s = substr(s, 2) }
            else if (match(s, /^[] !#-Z[^-~]+/) || match(s, /^([\302-\337][\200-\277])+/) ||
                match(s, /^\340[\240-\277][\200-\277]/) || match(s, /^[\341-\354\356\357][\200-\277][\200-\277]/) ||
                match(s, /^\355[\200-\237][\200-\277]/) || match(s, /^\360[\220-\277][\200-\277][\200-\277]/) ||
                match(s, /^[\361-\363][\200-\277][\200-\277][\200-\277]/) ||
                match(s, /^\364[\200-\217][\200-\277][\200-\277]/)) {
                out = out substr(s, 1, RLENGTH); s = substr(s, RLENGTH + 1)
            } else { out = out "?"; s = substr(s, 2) }
        }
        return out
    }
    BEGIN { printf "\"" }
    {
        if (NR > 1) printf "\\n"
        printf "%s", clean($0)
    }
    END { printf "\"" }'
}

# kurultai_log LEVEL TEXT…: error, warn, info, debug or trace, into the daemon's log.
kurultai_log() {
    kurultai_level=$1
    shift
    printf '{"type":"LOG","level":"%s","message":%s}\n' "$kurultai_level" "$(kurultai_json_string "$*")" >&3
}

# kurultai_progress PERCENT [TEXT [CHECKPOINT-JSON]]: sent when another 10 % is reached or 30 s have passed. The latest
# checkpoint is remembered whether sent or not.
kurultai_progress() {
    if [ -n "${3-}" ]; then # moved into place, so that a kill leaves the old one or the new one
        printf '%s' "$3" | tr '\n' ' ' >"$kurultai_dir/checkpoint.new"
        mv "$kurultai_dir/checkpoint.new" "$kurultai_dir/checkpoint"
    fi
    kurultai_percent=${1%%.*}
    kurultai_decile=$((kurultai_percent / 10))
    read -r kurultai_now _ </proc/uptime # the wall clock may jump
    kurultai_now=${kurultai_now%%.*}
    if [ "$kurultai_decile" -eq "${kurultai_last_decile:-0}" ] &&
        [ $((kurultai_now - ${kurultai_last_progress:-kurultai_now})) -lt 30 ]; then
        : "${kurultai_last_progress:=$kurultai_now}" # the 30 s count from the first report
        return 0
    fi
    kurultai_last_decile=$kurultai_decile
    kurultai_last_progress=$kurultai_now
    kurultai_line="{\"type\":\"PROGRESS\",\"taskId\":\"$KURULTAI_TASK_ID\",\"percent\":$kurultai_percent"
    [ -z "${2-}" ] || kurultai_line="$kurultai_line,\"message\":$(kurultai_json_string "$2")"
    [ ! -s "$kurultai_dir/checkpoint" ] || kurultai_line="$kurultai_line,\"checkpoint\":$(cat "$kurultai_dir/checkpoint")"
    printf '%s}\n' "$kurultai_line" >&3
}

# kurultai_breaker_acquire NAME: prints the permit; or returns 1 and prints the milliseconds to wait.
kurultai_breaker_acquire() {
    printf '{"type":"BREAKER","name":%s,"op":"acquire"}\n' "$(kurultai_json_string "$1")" >&3
    read -r kurultai_answer <"$kurultai_dir/breaker" || return 1
    printf '%s\n' "${kurultai_answer#* }"
    [ "${kurultai_answer%% *}" = permit ]
}

# kurultai_breaker_success NAME PERMIT, kurultai_breaker_failure NAME PERMIT: report the outcome.
kurultai_breaker_success() { kurultai_breaker_report success "$@"; }
kurultai_breaker_failure() { kurultai_breaker_report failure "$@"; }
kurultai_breaker_report() {
    printf '{"type":"BREAKER","name":%s,"op":"%s","permit":%s}\n' \
        "$(kurultai_json_string "$2")" "$1" "$(kurultai_json_string "$3")" >&3
}

# The resident memory of this shell; awk and the handler come and go.
kurultai_send_memory() {
    read -r _ kurultai_pages _ <"/proc/$kurultai_pid/statm"
    printf '{"type":"MEMORY","rss":%s}\n' $((kurultai_pages * kurultai_page)) >&3
}

# Process $1 and all below it, as a list.
kurultai_tree() {
    cat /proc/[0-9]*/stat 2>/dev/null | awk -v root="$1" '
    { pid = $1; sub(/.*\) /, ""); parent[pid] = $2 }      # the name in brackets may hold anything
    END {
        for (pid in parent) {
            p = pid
            while (p != root && (p in parent) && p > 1) p = parent[p]
            if (p == root) printf "%s ", pid
        }
    }'
}

# Ends the running job; true if it died unanswered. One that is just writing its answer ignores TERM and gets to its end.
kurultai_stop_job() {
    kurultai_pids=$(kurultai_tree "$kurultai_job")
    # shellcheck disable=SC2086 # a list
    kill -TERM $kurultai_pids 2>/dev/null
    kurultai_stopped=0
    wait "$kurultai_job" 2>/dev/null || kurultai_stopped=$?
    kurultai_job=
    [ "$kurultai_stopped" -ne 0 ] || return 1
    # Those that outlive the TERM get a second, then KILL. An id stays its owner's as long as that lives.
    kurultai_tries=0
    while kurultai_any_alive; do
        kurultai_tries=$((kurultai_tries + 1))
        if [ "$kurultai_tries" -gt 5 ]; then
            # shellcheck disable=SC2086
            kill -KILL $kurultai_pids 2>/dev/null
            break
        fi
        sleep 0.2 2>/dev/null || sleep 1
    done
    # An answer to a breaker question nobody asks any more must not reach the next task.
    exec 4<&-
    kurultai_open_breaker
    return 0
}

kurultai_any_alive() {
    for kurultai_one in $kurultai_pids; do
        # Why not kill -0: that finds zombies too, and orphans may stay zombies where init does not reap.
        { read -r kurultai_stat <"/proc/$kurultai_one/stat"; } 2>/dev/null || continue
        case ${kurultai_stat##*") "} in
        [ZX]*) ;;
        *) return 0 ;;
        esac
    done
    return 1
}

kurultai_open_breaker() {
    rm -f "$kurultai_dir/breaker"
    mkfifo -m 600 "$kurultai_dir/breaker"
    exec 4<>"$kurultai_dir/breaker" # both ends, so that neither the loop nor the handler waits for the other to open it
}

# Runs in the background: one task, up to and with its answer.
kurultai_run_task() {
    exec 4<&- # so that a wait for the breaker's answer ends with the loop
    kurultai_last_decile=0
    kurultai_last_progress=
    rm -f "$kurultai_dir/result" "$kurultai_dir/error"
    if [ -n "$kurultai_path" ]; then
        exec <"$kurultai_path"
    else
        printf '%s\n' "$kurultai_line" | kurultai_fields payload >"$kurultai_dir/payload"
        exec <"$kurultai_dir/payload"
    fi
    # stderr goes on to the log; its last line is kept as the error.
    kurultai_status=$({ { (handle_task) >"$kurultai_dir/result" 5>&-; printf '%s' "$?" >&5; } 2>&1 |
        awk -v keep="$kurultai_dir/error" '
        { print >"/dev/stderr"; if ($0 != "") last = $0 } END { print last >keep }' >&2; } 5>&1)
    # From here on the answer goes out whole, whatever comes.
    trap '' TERM
    if [ "${kurultai_status:-1}" -ne 0 ]; then
        kurultai_error=$(cat "$kurultai_dir/error" 2>/dev/null)
        kurultai_retryable=false
        [ "$kurultai_status" != 75 ] || kurultai_retryable=true
        printf '{"type":"FAILED","taskId":"%s","error":%s,"retryable":%s}\n' "$KURULTAI_TASK_ID" \
            "$(kurultai_json_string "${kurultai_error:-handle_task returned $kurultai_status}")" "$kurultai_retryable" >&3
    elif [ "${KURULTAI_RESULT-}" = json ] && kurultai_size=$(wc -c <"$kurultai_dir/result") &&
        [ "$kurultai_size" -gt 0 ] && [ "$kurultai_size" -lt 900000 ]; then
        printf '{"type":"COMPLETE","taskId":"%s","result":%s}\n' "$KURULTAI_TASK_ID" \
            "$(tr '\n' ' ' <"$kurultai_dir/result")" >&3
    else
        # Lines of 76 characters are 57 bytes; 9,000 of them make a CHUNK of 684,000 without padding inside.
        base64 <"$kurultai_dir/result" | awk -v id="$KURULTAI_TASK_ID" '
        function flush_piece() {
            if (piece != "") printf "{\"type\":\"CHUNK\",\"taskId\":\"%s\",\"seq\":%d,\"data\":\"%s\",\"encoding\":\"base64\"}\n", id, seq++, piece
            piece = ""
        }
        { piece = piece $0 } NR % 9000 == 0 { flush_piece() } END { flush_piece() }' >&3
        printf '{"type":"COMPLETE","taskId":"%s"}\n' "$KURULTAI_TASK_ID" >&3
    fi
    kurultai_send_memory
    : >"$kurultai_dir/done"
    exit 0
}

kurultai_start_task() {
    [ -z "$kurultai_job" ] || wait "$kurultai_job" 2>/dev/null # has answered, is about to end
    {
        read -r KURULTAI_TASK_ID
        read -r KURULTAI_ATTEMPT
        read -r KURULTAI_PRIORITY
        read -r KURULTAI_REQUEST_ID
        read -r KURULTAI_PAYLOAD_TYPE
        IFS= read -r kurultai_path
        IFS= read -r KURULTAI_CHECKPOINT || :
    } <<FIELDS
$(printf '%s\n' "$kurultai_line" | kurultai_fields fields)
FIELDS
    export KURULTAI_TASK_ID KURULTAI_ATTEMPT KURULTAI_PRIORITY KURULTAI_REQUEST_ID KURULTAI_PAYLOAD_TYPE
    rm -f "$kurultai_dir/done"
    printf '%s' "$KURULTAI_CHECKPOINT" >"$kurultai_dir/checkpoint"
    kurultai_run_task &
    kurultai_job=$!
}

# True if the line is about the task that runs.
kurultai_is_current() {
    [ -n "$kurultai_job" ] || return 1
    case $kurultai_compact in
    *"\"taskId\":\"$KURULTAI_TASK_ID\""*) [ ! -e "$kurultai_dir/done" ] ;;
    *) return 1 ;;
    esac
}

# Answers HELLO, then runs handle_task for one task after the other; exits 0 at SHUTDOWN or end of input.
kurultai_serve() {
    if [ -n "${KURULTAI_TASK_ID-}" ]; then
        # Only a oneshot's environment has it: no HELLO would come, and an empty result would pass for success.
        echo "kurultai_serve is for agents that are kept, and this one was started for one task:" \
            "set mode = \"persistent\" in [agents.${KURULTAI_AGENT-NAME}]" >&2
        exit 1
    fi
    kurultai_pid=$$
    kurultai_page=$(getconf PAGESIZE 2>/dev/null || echo 4096)
    kurultai_job=
    KURULTAI_TASK_ID=
    kurultai_dir=$(mktemp -d "${TMPDIR:-/tmp}/kurultai-agent.XXXXXX") || exit 71
    trap 'rm -rf "$kurultai_dir"' EXIT
    # Why: a TERM without trap would leave the directory behind.
    trap 'exit 143' TERM
    trap 'exit 130' INT
    # The protocol speaks on 3; a stray echo goes to stderr.
    exec 3>&1 1>&2
    kurultai_open_breaker
    while IFS= read -r kurultai_line; do
        # What is looked for below has no spaces; the daemon writes none, and "type" first.
        case $kurultai_line in
        '{"type":"'*) kurultai_compact=$kurultai_line ;;
        *) kurultai_compact=$(printf '%s\n' "$kurultai_line" | tr -d ' \t') ;;
        esac
        kurultai_type=${kurultai_compact#*\"type\":\"}
        case ${kurultai_type%%\"*} in
        HELLO)
            kurultai_can='"cancel"'
            [ -z "${KURULTAI_CHECKPOINTS-}" ] || kurultai_can='"checkpoint","cancel"'
            printf '{"type":"READY","protocol":1,"capabilities":[%s]}\n' "$kurultai_can" >&3
            ;;
        TASK) kurultai_start_task ;;
        CANCEL)
            if kurultai_is_current && kurultai_stop_job; then
                printf '{"type":"FAILED","taskId":"%s","error":"cancelled","retryable":false}\n' "$KURULTAI_TASK_ID" >&3
            fi
            ;;
        PREEMPT)
            if kurultai_is_current && kurultai_stop_job; then
                kurultai_kept=$(cat "$kurultai_dir/checkpoint")
                printf '{"type":"PREEMPTED","taskId":"%s"%s}\n' "$KURULTAI_TASK_ID" \
                    "${kurultai_kept:+,\"checkpoint\":$kurultai_kept}" >&3
            fi
            ;;
        GC)
            # Only one may write at a time: while a job runs, the MEMORY at its end is the answer.
            if [ -z "$kurultai_job" ] || [ -e "$kurultai_dir/done" ]; then kurultai_send_memory; fi
            ;;
        BREAKER_STATE)
            case $kurultai_compact in
            *'"permit":"'*)
                kurultai_value=${kurultai_compact#*\"permit\":\"}
                printf 'permit %s\n' "${kurultai_value%%\"*}" >&4
                ;;
            *'"retryAfterMs":'*)
                kurultai_value=${kurultai_compact#*\"retryAfterMs\":}
                printf 'wait %s\n' "${kurultai_value%%[!0-9]*}" >&4
                ;;
            esac
            ;;
        SHUTDOWN) break ;;
        esac
    done
    [ -z "$kurultai_job" ] || wait "$kurultai_job" 2>/dev/null
    exit 0
}
