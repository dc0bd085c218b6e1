# bash completion for kurultaictl(1)

_kurultaictl() {
    local cur prev word command='' group='' skip=0 words operand=0
    local global='--socket --url --token-file --json --help --version'
    COMPREPLY=()
    cur=${COMP_WORDS[COMP_CWORD]}
    prev=${COMP_WORDS[COMP_CWORD-1]}

    # Which command stands before the cursor.
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        if ((skip)); then skip=0; continue; fi
        case $word in
            --socket|--url|--token-file|--priority|--timeout|--retries|--idempotency-key|--state|--agent|--limit|--types|--config|--profile|--seed) skip=1 ;;
            -*) ;;
            *)
                if [[ $command ]]; then operand=$((operand + 1))
                elif [[ $group ]]; then command="$group $word"
                elif [[ $word == tasks || $word == breakers ]]; then group=$word
                else command=$word
                fi ;;
        esac
    done

    case $prev in
        --socket|--token-file|--config|--profile) mapfile -t COMPREPLY < <(compgen -f -- "$cur"); return ;;
        --priority) mapfile -t COMPREPLY < <(compgen -W 'critical high normal low heartbeat' -- "$cur"); return ;;
        --state) mapfile -t COMPREPLY < <(compgen -W 'queued running preempted completed failed cancelled skipped evicted' -- "$cur"); return ;;
        --url|--timeout|--retries|--idempotency-key|--agent|--limit|--types|--seed) return ;;
    esac

    case $command in
        'status') words='--watch' ;;
        'submit') words='--priority --wait --timeout --retries --idempotency-key --json-payload' ;;
        'tasks list') words='--state --agent --limit' ;;
        'tasks show') words='' ;;
        'tasks cancel') words='' ;;
        'tasks result') words='' ;;
        'tasks follow') words='' ;;
        'queue') words='' ;;
        'workers') words='' ;;
        'breakers list') words='' ;;
        'breakers open') words='' ;;
        'breakers close') words='' ;;
        'memory') words='' ;;
        'doctor') words='' ;;
        'simulate') words='--config --profile --seed --csv --record' ;;
        'why') words='' ;;
        'events') words='--types' ;;
        'reload') words='' ;;
        'drain') words='' ;;
        'completions') words='' ;;
        *)
            case $group in
                tasks) words='list show cancel result follow' ;;
                breakers) words='list open close' ;;
                *) words='status submit tasks queue workers breakers memory doctor simulate why events reload drain completions' ;;
            esac ;;
    esac

    if [[ $cur == -* ]]; then
        [[ $words == -* ]] || words=''
        mapfile -t COMPREPLY < <(compgen -W "$words $global" -- "$cur")
    elif [[ $command == submit && $operand == 1 ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    elif [[ $command == completions && $operand == 0 ]]; then
        mapfile -t COMPREPLY < <(compgen -W 'bash zsh fish' -- "$cur")
    elif [[ ! $command ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
    fi
}

complete -o filenames -F _kurultaictl kurultaictl
