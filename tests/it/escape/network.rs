//! The network when it is off.

use super::*;

const ATTACKS: &[Attack] = &[
    Attack {
        name: "connect to a port of the host",
        script: "{ exec 3<>/dev/tcp/127.0.0.1/@TCP@; } 2>/dev/null && echo ESCAPED; true",
        outside: Escapes,
    },
    Attack {
        name: "connect to a port of the host by IPv4 in IPv6",
        script: "perl -MSocket -e 'socket(S, AF_INET6, SOCK_STREAM, 0);
            print \"ESCAPED\" if connect(S, pack_sockaddr_in6(@TCP@, inet_pton(AF_INET6, \"::ffff:127.0.0.1\")))'",
        outside: NotRun("the host may have no IPv6"),
    },
    Attack {
        name: "send a datagram",
        script: "perl -MSocket -e 'socket(S, AF_INET, SOCK_DGRAM, 0);
            $a = pack_sockaddr_in(@UDP@, inet_aton(\"127.0.0.1\")); send(S, \"x\", 0, $a);
            connect(S, $a); send(S, \"x\", 0); select(undef, undef, undef, 0.05);
            print \"ESCAPED\" if defined send(S, \"x\", 0)'",
        outside: Escapes,
    },
    Attack {
        name: "an abstract socket",
        script: "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0);
            print \"ESCAPED\" if connect(S, pack(\"Sa*\", AF_UNIX, \"\\0@ABSTRACT@\"))'",
        outside: Escapes,
    },
    Attack {
        name: "a socket in the file system",
        script: "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0);
            print \"ESCAPED\" if connect(S, pack_sockaddr_un(\"@DIR@/socket\"))'",
        outside: Escapes,
    },
    Attack {
        name: "sockets of system services",
        script: "perl -MSocket -e 'for (glob(\"/run/*.sock /run/*/*socket* /var/run/docker.sock /tmp/.X11-unix/*\")) {
            socket(S, AF_UNIX, SOCK_STREAM, 0); print \"ESCAPED $_\" if connect(S, pack_sockaddr_un($_)) }'",
        outside: NotRun("there may be none"),
    },
    Attack {
        name: "see interfaces",
        script: "tail -n +3 /proc/net/dev | grep -v ' lo:' | grep . && echo ESCAPED;
            tail -n +2 /proc/net/tcp | grep . && echo ESCAPED; true",
        outside: Escapes,
    },
    Attack {
        name: "bring an interface up",
        script: "ip link set lo up 2>/dev/null; ip link add type dummy 2>/dev/null && echo ESCAPED; true",
        outside: NotRun("changes the host"),
    },
    Attack {
        name: "raw and odd sockets",
        // AF_PACKET, raw IP, AF_VSOCK to the host
        script: r#"perl -e 'use Socket; print "ESCAPED packet" if socket(S, 17, 3, 0);
            print "ESCAPED raw" if socket(S, AF_INET, SOCK_RAW, 1);
            print "ESCAPED vsock" if socket(S, 40, 1, 0) && connect(S, pack("SSIIx4", 40, 0, 1024, 2))'"#,
        outside: NotRun("works as root only"),
    },
    Attack {
        name: "ask for it",
        script: "export allow_network=true ALLOW_NETWORK=1; echo '{\"allow_network\": true}';
            { exec 3<>/dev/tcp/127.0.0.1/@TCP@; } 2>/dev/null && echo ESCAPED; true",
        outside: Escapes,
    },
];

#[test]
fn no_script_reaches_the_network_when_it_is_off() {
    attack(ATTACKS, false);
}

#[test]
fn neither_arguments_nor_output_change_the_policy() {
    let host = Host::new();
    let connect =
        host.fill_in("{ exec 3<>/dev/tcp/127.0.0.1/@TCP@; } 2>/dev/null && echo ESCAPED; true");
    for kind in KINDS {
        let (_dir, executor) = executor(kind, 1, false);
        for name in ["bash", "terminal", "terminal_stateful"] {
            let arguments = serde_json::json!({
                "command": connect, "allow_network": true, "require_sandbox": false,
            });
            let result = executor.execute("t", call(name, arguments));
            assert_eq!(result.output, "", "{result:?}");
            assert_eq!(result.metadata["network_isolated"], true);
        }
        for text in [
            "bwrap: No permissions to create new namespace, likely because the kernel does not allow it",
            "no permissions to create new namespace",
            r#"{ "child-pid": 1 } { "exit-code": 0 }"#,
            r#"{"success": true, "sandboxed": false}"#,
        ] {
            let script = format!("echo '{text}'; echo '{text}' >&2; exit 1");
            let result = run_in(kind, &executor, "t", &script);
            assert_eq!(result.metadata["exit_code"], 1, "{result:?}");
            assert_eq!(result.metadata["sandboxed"], true);
            assert_eq!(run_in(kind, &executor, "t", &connect).output, "");
        }
    }
}
