# fish completion for kurultaictl(1)

# Whether the command before the cursor is the one given, in one or two words.
function __kurultaictl_at
    set -l words
    set -l skip 0
    for word in (commandline -opc)[2..-1]
        if test $skip = 1
            set skip 0
            continue
        end
        switch $word
            case --socket --url --token-file --priority --timeout --retries --idempotency-key --state --agent --limit --types --config --profile --seed
                set skip 1
            case '-*'
            case '*'
                set -a words $word
        end
    end
    if test (count $argv) = 0
        test (count $words) = 0
    else if test "$argv[1]" = --group
        test (count $words) = 1; and test "$words[1]" = "$argv[2]"
    else
        test "$words[1..$(count $argv)]" = "$argv"
    end
end

complete -c kurultaictl -f
complete -c kurultaictl -l socket -r -F -d 'the Unix socket of the daemon'
complete -c kurultaictl -l url -x -d 'talk to http://host:port instead'
complete -c kurultaictl -l token-file -r -F -d 'file with the access token'
complete -c kurultaictl -l json -d 'print the JSON of the API'
complete -c kurultaictl -l help -s h -d 'explain the command'
complete -c kurultaictl -l version -s V -d 'print the version'

complete -c kurultaictl -n '__kurultaictl_at' -a status -d 'memory, queue and workers at a glance'
complete -c kurultaictl -n '__kurultaictl_at' -a submit -d 'give a task to an agent'
complete -c kurultaictl -n '__kurultaictl_at' -a tasks -d 'list, show and cancel tasks'
complete -c kurultaictl -n '__kurultaictl_at --group tasks' -a list -d 'tasks, newest first'
complete -c kurultaictl -n '__kurultaictl_at --group tasks' -a show -d 'everything about one task'
complete -c kurultaictl -n '__kurultaictl_at --group tasks' -a cancel -d 'cancel a task'
complete -c kurultaictl -n '__kurultaictl_at --group tasks' -a result -d 'write the result of a task'
complete -c kurultaictl -n '__kurultaictl_at --group tasks' -a follow -d 'print what happens to a task'
complete -c kurultaictl -n '__kurultaictl_at' -a queue -d 'tasks that wait'
complete -c kurultaictl -n '__kurultaictl_at' -a workers -d 'worker processes'
complete -c kurultaictl -n '__kurultaictl_at' -a breakers -d 'list and force circuit breakers'
complete -c kurultaictl -n '__kurultaictl_at --group breakers' -a list -d 'circuit breakers'
complete -c kurultaictl -n '__kurultaictl_at --group breakers' -a open -d 'force a breaker open'
complete -c kurultaictl -n '__kurultaictl_at --group breakers' -a close -d 'force a breaker closed'
complete -c kurultaictl -n '__kurultaictl_at' -a memory -d 'memory use against the limits'
complete -c kurultaictl -n '__kurultaictl_at' -a doctor -d 'what holds the limits on this host'
complete -c kurultaictl -n '__kurultaictl_at' -a simulate -d 'what the daemon would do with a load'
complete -c kurultaictl -n '__kurultaictl_at' -a why -d 'why a task waits or was stopped'
complete -c kurultaictl -n '__kurultaictl_at' -a events -d 'print events as they happen'
complete -c kurultaictl -n '__kurultaictl_at' -a reload -d 'read the configuration again'
complete -c kurultaictl -n '__kurultaictl_at' -a drain -d 'finish what runs, and stop'
complete -c kurultaictl -n '__kurultaictl_at' -a completions -d 'print a completion script'

complete -c kurultaictl -n '__kurultaictl_at status' -l watch -d 'show it again every second'
complete -c kurultaictl -n '__kurultaictl_at submit' -l priority -x -a 'critical high normal low heartbeat' -d 'which runs first'
complete -c kurultaictl -n '__kurultaictl_at submit' -l wait -d 'wait for the result'
complete -c kurultaictl -n '__kurultaictl_at submit' -l timeout -x -d 'seconds the task may run'
complete -c kurultaictl -n '__kurultaictl_at submit' -l retries -x -d 'run it again after a failure'
complete -c kurultaictl -n '__kurultaictl_at submit' -l idempotency-key -x -d 'a second submission is the same task'
complete -c kurultaictl -n '__kurultaictl_at submit' -l json-payload -d 'the payload is JSON'
complete -c kurultaictl -n '__kurultaictl_at tasks list' -l state -x -a 'queued running preempted completed failed cancelled skipped evicted' -d 'only in these states'
complete -c kurultaictl -n '__kurultaictl_at tasks list' -l agent -x -d 'only of this agent'
complete -c kurultaictl -n '__kurultaictl_at tasks list' -l limit -x -d 'at most so many'
complete -c kurultaictl -n '__kurultaictl_at simulate' -l config -r -F -d 'the configuration of the daemon'
complete -c kurultaictl -n '__kurultaictl_at simulate' -l profile -r -F -d 'the load'
complete -c kurultaictl -n '__kurultaictl_at simulate' -l seed -x -d 'where chance begins'
complete -c kurultaictl -n '__kurultaictl_at simulate' -l csv -d 'print memory and queue over time'
complete -c kurultaictl -n '__kurultaictl_at simulate' -l record -d 'print a profile of a running daemon'
complete -c kurultaictl -n '__kurultaictl_at events' -l types -x -d 'only these events'
complete -c kurultaictl -n '__kurultaictl_at submit' -F
complete -c kurultaictl -n '__kurultaictl_at completions' -a 'bash zsh fish'
