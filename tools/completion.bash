# Tab completion for memfsd, memfs and kvmsim in bash: source tools/completion.bash
# shellcheck shell=bash

# Words that start as the current one does, else files.
_memfsd_words() { mapfile -t COMPREPLY < <(compgen -W "$1" -- "$2"); }

# A comma-separated list: completes its last part.
_memfsd_list() {
    local done=
    [[ $2 == *,* ]] && done="${2%,*},"
    mapfile -t COMPREPLY < <(compgen -P "$done" -W "$1" -- "${2##*,}")
    compopt -o nospace 2>/dev/null
}

_memfsd() {
    local word=$2 before=$3
    case $before in
        --journal | --trace | -e | --filter) ;;
        --no-op) _memfsd_words 'page-map' "$word" ;;
        -o) _memfsd_list 'size= nodes= distances= guest resize=once resize=any seal_nonempty=refuse seal_nonempty=truncate
            open=strict open=rw fixed_gfn=on fixed_gfn=off abi=thread abi=gmem-6.18 abi=gmem-7.2 abi=gmem-inplace split=on split=off socket= swap= swap_size= swap_reset
            nr_inodes= allow_other allow_root auto_unmount default_permissions ro rw exec noexec suid nosuid dev nodev
            sync async dirsync relatime norelatime strictatime nostrictatime atime noatime diratime nodiratime nosymfollow
            fsname= subtype=' "$word" ;;
        *) [[ $word == -* ]] && _memfsd_words '-h --help -f -d -o --no-op --journal --trace -e --filter --version' "$word" ;;
    esac
}

_memfs() {
    local word=$2 before=$3 command=${COMP_WORDS[1]} options='-h --help --json'
    if ((COMP_CWORD == 1)); then
        _memfsd_words 'create seal stat map fallocate bind move numastat compact offline online check top vms poison device kcore
            swapout swapoff -h --help --version' "$word"
        return
    fi
    case $before in
        --page-size) _memfsd_words '4K 2M 1G' "$word" && return ;;
        --abi) _memfsd_words 'thread gmem-6.18 gmem-7.2 gmem-inplace' "$word" && return ;;
        --flags) _memfsd_list 'mmap init-shared' "$word" && return ;;
        --size | -l | --length | -o | --offset | -d | --delay | -n | --count | --seed)
            [[ $command == fallocate && $before == -n || $command == kcore ]] || return ;;
    esac
    case $command in
        create) options+=' --size --guest --page-size --abi --flags' ;;
        bind) options+=' -o --offset -l --length' ;;
        fallocate) options+=' -p --punch-hole -n --keep-size -o --offset -l --length' ;;
        device)
            ((COMP_CWORD == 2)) && _memfsd_words 'add remove' "$word" && return
            [[ ${COMP_WORDS[2]} == add ]] && options+=' --size --page-size' ;;
        poison) options+=' --random --seed' ;;
        kcore) options+=' -o --output' ;;
        swapout | move) options+=' -o --offset -l --length' ;;
        top) options+=' -d --delay -n --count --once' ;;
    esac
    if [[ $word == -* ]]; then
        _memfsd_words "$options" "$word"
    elif [[ $command == seal && $COMP_CWORD -ge 3 && $before != -* ]]; then
        _memfsd_list 'guest shrink grow write future-write seal truncate' "$word"
    elif [[ $command == bind && $COMP_CWORD -ge 3 && $before != -* ]]; then
        _memfsd_words 'default local bind: preferred: preferred-many: interleave: weighted-interleave:' "$word"
    fi
}

_kvmsim() {
    local word=$2 before=$3 options='-h --help --policy --under --abi --max-slots --json -q --quiet --journal --gdb --qmp -v --verbose'
    options+=' --memory-encryption --tamper --no-op --trace -e -f --filter'
    if ((COMP_CWORD == 1)); then
        _memfsd_words 'run attach shell monitor top race compare vmms abi journal report trace stat perf -h --help --version' "$word"
        return
    fi
    if [[ ${COMP_WORDS[1]} == journal ]]; then
        if ((COMP_CWORD == 2)); then
            _memfsd_words 'check show -h --help' "$word"
        elif [[ $before == --kind && ${COMP_WORDS[2]} == show ]]; then
            _memfsd_list 'hello pair bind unbind get_pfn stat ping bye invalidate_begin invalidate_end revoke report
                check map list found zapped out freed cut gone' "$word"
        elif [[ $word == -* ]]; then
            options='-h --help --json'
            [[ ${COMP_WORDS[2]} == show ]] && options+=' -f --follow --vm --file --kind'
            _memfsd_words "$options" "$word"
        fi
        return
    fi
    case ${COMP_WORDS[1]} in
        report) options='-h --help -o --output --json' ;;
        top) options='-h --help -d --delay -n --count --once --json' ;;
        monitor) options='-h --help --json' ;;
        stat) options='-h --help -1 --once -l --log -s -m --monitor -f --fields -g --guest -b --by-vm --json' ;;
        trace)
            ((COMP_CWORD == 2)) && _memfsd_words 'list convert -h --help' "$word" && return
            options='-h --help --json'
            [[ ${COMP_WORDS[2]} == convert ]] && options+=' -o' ;;
        perf)
            ((COMP_CWORD == 2)) && _memfsd_words 'report -h --help' "$word" && return
            options='-h --help -k --key -g --guest --vcpu --json' ;;
    esac
    [[ ${COMP_WORDS[1]} == run ]] && options+=' --keep-going --report'
    [[ ${COMP_WORDS[1]} == attach ]] && options+=' --gpa'
    if [[ ${COMP_WORDS[1]} == compare ]]; then
        options='-h --help --workloads --designs --page-sizes --max-slots --json --plot --html'
    fi
    [[ ${COMP_WORDS[1]} == abi ]] && options='-h --help --situations --list --json --markdown --html'
    [[ ${COMP_WORDS[1]} == vmms ]] && options='-h --help --models --model --scenarios --abi --list --json --markdown'
    if [[ ${COMP_WORDS[1]} == race ]]; then
        options='-h --help --seed --count --exhaustive --bound --limit --page-map --workers --cluster --replay --record --list --points --show --json'
    fi
    case $before in
        --qmp) _memfsd_words 'unix: none' "$word" && compopt -o nospace 2>/dev/null ;;
        --no-op) _memfsd_words 'move page-map report revoke swap-in swap-out' "$word" ;;
        --policy) _memfsd_words 'none recreate punch overlay attributes inplace' "$word" ;;
        --abi)
            if [[ ${COMP_WORDS[1]} == vmms ]]; then
                _memfsd_list 'thread gmem-6.18 gmem-7.2' "$word"
            else
                _memfsd_words 'thread gmem-6.18 gmem-7.2 gmem-inplace' "$word"
            fi
            ;;
        --under) _memfsd_words 'kept freed' "$word" ;;
        --memory-encryption) _memfsd_words 'none on' "$word" ;;
        --tamper) _memfsd_words 'mce refuse' "$word" ;;
        --models) _memfsd_list 'qemu cloud-hypervisor libkrun alioth firecracker reference' "$word" ;;
        --workloads) _memfsd_list 'boot ring misbehave page' "$word" ;;
        --designs) _memfsd_list 'recreate punch overlay/kept overlay/freed attributes inplace' "$word" ;;
        --page-sizes) _memfsd_list '4K 2M 1G' "$word" ;;
        --max-slots | --gpa | --gdb | --journal | --trace | --scenarios | --situations | --model | -e | -f | --filter | --seed | --count | --bound | --limit | --workers | --cluster | --replay | --record | --plot) ;;
        --page-map) _memfsd_words 'on off' "$word" ;;
        *)
            if [[ $word == -* ]]; then
                _memfsd_words "$options" "$word"
            elif [[ ${COMP_WORDS[1]} == race ]]; then
                _memfsd_words "$(kvmsim race --list 2>/dev/null | cut -d' ' -f1)" "$word"
            fi
            ;;
    esac
}

complete -o default -F _memfsd memfsd
complete -o default -F _memfs memfs
complete -o default -F _kvmsim kvmsim
