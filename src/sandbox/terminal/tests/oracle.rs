//! Random sequences of commands, in a session and in a plain bash that is fed the same ones: the
//! same output, the same exit codes, the same state at the end.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// What is known of one command.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    stdout: String,
    stderr: String,
    code: i32,
}

/// Shows variables, functions, options and files.
const STATE: &str = "declare -p a b c arr map 2>/dev/null; declare -f f g; echo \"$# $*\"; \
    echo \"${PWD#\"$ROOT\"}\"; shopt -p nullglob extglob; set +o | grep -e noglob -e pipefail; umask; \
    alias; trap; jobs -r | wc -l; cd \"$ROOT\"; find . -type f | LC_ALL=C sort | while read -r file; do \
    echo \"$file: $(<\"$file\")\"; done";

fn name() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a"), Just("b"), Just("c")]
}

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9]{1,5}",
        Just("'two  words'".to_owned()),
        Just("\"$a$b\"".to_owned()),
        Just("$'tab\\there'".to_owned()),
        Just("\"it's #not a comment\"".to_owned()),
        Just("${c:-none}".to_owned()),
        Just("$?".to_owned()),
        Just("é€😀".to_owned()),
        Just("''".to_owned()),
    ]
}

/// A command that is no more than one line.
fn simple() -> impl Strategy<Value = String> {
    prop_oneof![
        word().prop_map(|word| format!("echo {word}")),
        word().prop_map(|word| format!("printf %s {word}")),
        word().prop_map(|word| format!("echo {word} >&2")),
        (name(), word()).prop_map(|(name, word)| format!("{name}={word}")),
        (name(), word())
            .prop_map(|(name, word)| format!("export {name}={word}; env | grep ^{name}=")),
        name().prop_map(|name| format!("unset {name}")),
        (name(), 0..9_u8).prop_map(|(name, n)| format!("{name}=$(({name}0 + {n} * 3))")),
        (name(), word()).prop_map(|(name, word)| format!("{name}=\"$(echo {word}; exit 3)\"")),
        word().prop_map(|word| format!("arr+=({word}); echo ${{#arr[@]}} \"${{arr[@]}}\"")),
        word().prop_map(|word| format!("declare -A map; map[k]={word}; echo \"${{!map[@]}}\"")),
        (0..256_u16).prop_map(|code| format!("(exit {code})")),
        (0..256_u16).prop_map(|code| format!("return {code}; echo never")),
        Just("echo $?".to_owned()),
        Just("true".to_owned()),
        Just("false".to_owned()),
        Just("! true".to_owned()),
        Just("mkdir -p d/e; cd d/e".to_owned()),
        Just("cd \"$ROOT\"".to_owned()),
        Just("cd .. && cd - >/dev/null; cd ./nowhere".to_owned()),
        Just("echo \"${PWD#\"$ROOT\"}\"".to_owned()),
        (word(), "[fgh]").prop_map(|(word, file)| format!("echo {word} >>{file}; cat {file}")),
        Just("f() { echo \"f:$1\"; return 4; }; f x".to_owned()),
        word().prop_map(|word| format!("g() {{ local a={word}; f \"$a\"; echo \"g:$?\"; }}; g")),
        Just("f".to_owned()),
        Just("unset -f f".to_owned()),
        (word(), word()).prop_map(|(one, two)| format!("set -- {one} {two}; echo $# \"$2\"")),
        Just("shift; echo $#".to_owned()),
        Just("shopt -s nullglob; echo no*where".to_owned()),
        Just("shopt -u nullglob; echo no*where".to_owned()),
        Just("set -o pipefail; false | true".to_owned()),
        Just("set +o pipefail; false | true".to_owned()),
        Just("set -f; echo *; set +f".to_owned()),
        Just("umask 027; umask".to_owned()),
        Just("no_such_command".to_owned()),
        Just("cat ./no_such_file".to_owned()),
        Just("read x; echo \"[$x] $?\"".to_owned()),
        Just("sort | wc -l".to_owned()),
        Just("echo $LINENO; echo ${#FUNCNAME[@]}".to_owned()),
        Just("sleep 0.01 & wait $!; echo $?".to_owned()),
        Just("(exit 5) & wait $!".to_owned()),
        Just("{ echo from a job; } & wait".to_owned()),
        Just("exec 7>seven; echo seven >&7; exec 7>&-; cat seven".to_owned()),
        Just("trap 'echo usr1' USR1; kill -USR1 $BASHPID".to_owned()),
        Just("trap - USR1".to_owned()),
        Just("sh -c 'echo in a child; exit 6'".to_owned()),
        Just("echo one; exec 2>&2".to_owned()),
        Just("[[ $a == a* ]] && echo yes || echo no".to_owned()),
        Just("case \"$a$b\" in (*[0-9]*) echo digit;; (*) echo other;; esac".to_owned()),
        Just("eval 'echo \"$a\"; (exit 8)'".to_owned()),
        Just("cat <(echo from a process)".to_owned()),
        Just("cat <<<\"here $a\"".to_owned()),
        Just("TIMEFORMAT=timed; time true".to_owned()),
        Just("alias say='echo said'".to_owned()),
        // Nothing that may end before it has read everything: with pipefail that is a matter of
        // luck.
        Just("type f | sed -n 1p".to_owned()),
        Just("local x".to_owned()),
        Just("readonly RO=1; echo $RO".to_owned()),
        Just("printf '%s\\n' {1..3}{a,b} | tail -2".to_owned()),
        Just("echo -n; # nothing".to_owned()),
        Just("getopts ab: o -a; echo $o $OPTIND".to_owned()),
    ]
}

/// A command as a model sends it.
fn command() -> impl Strategy<Value = String> {
    let one = simple();
    prop_oneof![
        6 => one,
        2 => proptest::collection::vec(simple(), 2..4).prop_map(|all| all.join("\n")),
        1 => (simple(), simple()).prop_map(|(one, two)| format!("{one}\n# a comment\n{two} # end")),
        1 => simple().prop_map(|one| format!("if true; then\n{one}\nfi")),
        1 => simple().prop_map(|one| format!("for i in 1 2; do\n{one}\ndone")),
        1 => simple().prop_map(|one| format!("({one}\n)")),
        1 => simple().prop_map(|one| format!("{{ {one}\n}} | cat")),
        1 => simple().prop_map(|one| format!("x=$({one}\n); echo \"$x $?\"")),
        1 => word().prop_map(|word| format!("cat <<EOF\nhere {word}\n$(echo sub)\nEOF\necho after")),
        1 => word().prop_map(|word| format!("cat <<'EOF'\nraw {word}\nEOF")),
        1 => simple().prop_map(|one| format!("{one} &&")),
        1 => simple().prop_map(|one| format!("{one}\n; echo bad")),
        1 => simple().prop_map(|one| format!("echo 'unbalanced; {}", one.replace('\'', ""))),
        1 => Just("for".to_owned()),
        1 => Just("fi".to_owned()),
        1 => Just("echo $((1 + ))".to_owned()),
    ]
}

/// Runs the commands in a plain bash, one after the other; gives what it said.
fn oracle(commands: &[String], root: &Path, aux: &Path) -> Vec<Said> {
    // A shell cannot let go of signals that were ignored when it began, and shows them as traps:
    // those of whoever runs the tests, under `nohup` for one.
    let mut bash = Command::new("env")
        .args(["--default-signal", "bash", "--noprofile", "--norc"])
        .env_clear()
        .envs([("PATH", crate::sandbox::shell::PATH), ("LANG", "C.UTF-8"), ("TERM", "dumb")])
        .envs([("HOME", root), ("ROOT", root)])
        .current_dir(root)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let aux_path = aux.display();
    let mut script = "umask 022; shopt -s expand_aliases; unset SHLVL OLDPWD; BASH_ARGV0=bash\n\
        _said() { printf '%s\\n' \"$1\" >\"$2\"; return \"$1\"; }\n"
        .to_owned();
    for (index, command) in commands.iter().enumerate() {
        std::fs::write(aux.join(format!("c{index}")), format!("{command}\n")).unwrap();
        script += &format!(
            "source '{aux_path}/c{index}' </dev/null >'{aux_path}/o{index}' 2>'{aux_path}/e{index}'; \
             _said $? '{aux_path}/s{index}'\n"
        );
    }
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    bash.wait().unwrap();
    let read = |name: String| {
        String::from_utf8_lossy(&std::fs::read(aux.join(name)).unwrap_or_default()).into_owned()
    };
    (0..commands.len())
        .map(|index| Said {
            stdout: read(format!("o{index}")),
            stderr: plain(&read(format!("e{index}"))),
            code: read(format!("s{index}")).trim().parse().unwrap_or(-1),
        })
        .collect()
}

/// Messages without the place that bash found the fault in, which it does not name alike.
fn plain(messages: &str) -> String {
    let line = |line: &str| {
        let line = line.strip_prefix("bash: ").unwrap_or(line);
        let place = line.find(": line ").and_then(|at| {
            let rest = &line[at + 7..];
            let digits = rest.find(|c: char| !c.is_ascii_digit())?;
            rest[digits..].strip_prefix(": ")
        });
        place.unwrap_or(line).to_owned() + "\n"
    };
    messages.lines().map(line).collect()
}

fn session(bench: &Bench, commands: &[String]) -> Vec<Said> {
    bench.output("ROOT=/workspace; export ROOT; unset SHLVL OLDPWD; set --");
    let said = |command: &String| {
        let ended = bench.run(command);
        Said {
            stdout: ended.finished.stdout.text.clone(),
            stderr: plain(&ended.finished.stderr.text),
            code: match ended.finished.end {
                End::Exited(code) => code,
                other => panic!("{command}: {other:?}"),
            },
        }
    };
    commands.iter().map(said).collect()
}

#[test]
fn a_session_is_like_a_plain_bash() {
    let bench = Bench::sandboxed();
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 40;
    }
    let sequences = proptest::collection::vec(command(), 1..12);
    TestRunner::new(config)
        .run(&sequences, |mut commands| {
            commands.push(STATE.to_owned());
            let (root, aux) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let expected = oracle(&commands, root.path(), aux.path());
            let found = session(&bench, &commands);
            bench.end_slot(0);
            bench.workspaces[0].clear().unwrap();
            for ((command, found), expected) in commands.iter().zip(&found).zip(&expected) {
                prop_assert_eq!(found, expected, "{}", command);
            }
            Ok(())
        })
        .unwrap();
}
