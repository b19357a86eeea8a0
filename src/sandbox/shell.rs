//! How a command reaches its shell, and what environment it finds there. Pure.
//!
//! `isolation` says what it sees, `running` and `entered` start it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::tool::{BashArguments, Run};

/// The number under which the shell gets its [`ShellCall::script`]; closed before the command
/// runs.
pub(super) const SCRIPT_FD: i32 = 5;

/// Where programs are looked for inside a sandbox.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The shell that runs commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shell {
    /// `/bin/bash`.
    Bash,
    /// `/bin/sh`, where there is no bash.
    Sh,
}

impl Shell {
    /// bash where `/bin/bash` exists.
    pub(crate) fn detect() -> Self {
        match Path::new("/bin/bash").exists() {
            true => Self::Bash,
            false => Self::Sh,
        }
    }

    /// Its absolute path.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Bash => "/bin/bash",
            Self::Sh => "/bin/sh",
        }
    }

    /// Its `$0`, which begins its error messages.
    fn name(self) -> &'static str {
        match self {
            Self::Bash => "bash",
            Self::Sh => "sh",
        }
    }
}

/// A shell, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShellPath {
    /// Which it is.
    pub(super) kind: Shell,
    /// Its absolute path.
    pub(super) path: PathBuf,
}

/// A script that does in a shell what a call of `bash` asks for: its directory, its variables, its
/// command or program. Its standard input and its outputs are no part of that.
///
/// Shells start in the workspace, or in another directory, from which a path of the workspace is
/// no other than it says.
///
/// All is on the command's own first line, so that line numbers are what they would be.
pub(crate) fn script_of(arguments: &BashArguments<'_>, shell: Shell, in_workspace: bool) -> String {
    let mut script = String::new();
    if let Some(workdir) = arguments.workdir {
        let directory = match workdir.starts_with('/') && !in_workspace {
            true => workdir.to_owned(),
            false => as_seen_from_workspace(workdir),
        };
        script.push_str(&format!("cd -- {} || exit; ", quoted(&directory)));
    }
    if !arguments.env.is_empty() {
        let variable = |(name, value): &(&str, &str)| format!(" {name}={}", quoted(value));
        let variables: String = arguments.env.iter().map(variable).collect();
        script.push_str(&format!("export{variables}; "));
    }
    match &arguments.run {
        Run::Program(words) => {
            let dashes = match shell {
                Shell::Bash => "-- ",
                Shell::Sh => "",
            };
            let words: Vec<_> = words.iter().map(|word| quoted(word)).collect();
            script.push_str(&format!("exec {dashes}{}", words.join(" ")));
        }
        Run::Command(command) => script.push_str(command),
    }
    script
}

/// A script that does the same in another directory of the machine.
pub(crate) fn script_in(directory: &Path, script: &str) -> String {
    format!("cd -- {} || exit; {script}", quoted(&directory.to_string_lossy()))
}

/// A directory as a shell that starts in the workspace finds it, in a sandbox or without one.
fn as_seen_from_workspace(directory: &str) -> String {
    match directory.strip_prefix("/workspace") {
        Some("") => "./".to_owned(),
        Some(rest) if rest.starts_with('/') => format!(".{rest}"),
        _ if directory.starts_with('/') => directory.to_owned(),
        // So that nothing is taken for an option, or for the directory before.
        _ => format!("./{directory}"),
    }
}

/// A script that does the same with these variables beside what it has.
pub(super) fn script_with<'a>(
    variables: impl Iterator<Item = (&'a str, &'a str)>,
    script: &str,
) -> String {
    let variables: String =
        variables.map(|(name, value)| format!(" {name}={}", quoted(value))).collect();
    // On the script's own first line, so that line numbers are what they would be.
    format!("export{variables}; {script}")
}

/// `text` as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// How a command reaches its shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShellCall {
    /// The shell's arguments, its `$0` first.
    pub(super) argv: Vec<OsString>,
    /// What the shell must find in [`SCRIPT_FD`].
    pub(super) script: Vec<u8>,
}

/// How `shell` is made to run `command`.
///
/// Not as an argument, which all processes see: `pkill -f` would find the command's own text in its
/// shell, and end that. bash has the text evaluated, and not sourced, so that its messages begin as
/// those of `bash -c` do, by `bash: line 1`.
pub(super) fn shell_call(shell: Shell, command: &str) -> ShellCall {
    let (begin, forget) = match shell {
        // Up to a NUL, of which a command has none.
        Shell::Bash => (format!("read -rd '' -u{SCRIPT_FD}; eval \"$REPLY\""), "unset REPLY; "),
        Shell::Sh => (format!(". /proc/self/fd/{SCRIPT_FD}"), ""),
    };
    let argv = [shell.name(), "-c", "--", &begin].map(OsString::from).to_vec();
    // On the command's own first line, so that line numbers in messages are right.
    let script = format!("{forget}exec {SCRIPT_FD}<&-; {command}\n").into_bytes();
    ShellCall { argv, script }
}

/// Where a slot's directories are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Places<'a> {
    /// The workspace, in which commands begin.
    pub(crate) workspace: &'a Path,
    /// What they have as `/tmp`.
    pub(crate) temporary: &'a Path,
    /// Their home directory.
    pub(crate) home: &'a Path,
}

/// The whole environment of a command, as `NAME=value`. Nothing of the host's own is in it.
pub(super) fn environment(places: &Places<'_>, shell: &Path, user: &str) -> Vec<OsString> {
    [
        ("PATH", OsStr::new(PATH)),
        ("HOME", places.home.as_os_str()),
        ("PWD", places.workspace.as_os_str()),
        ("TMPDIR", places.temporary.as_os_str()),
        ("USER", OsStr::new(user)),
        ("LOGNAME", OsStr::new(user)),
        ("SHELL", shell.as_os_str()),
        ("LANG", OsStr::new("C.UTF-8")),
        ("TERM", OsStr::new("dumb")),
        // What a killed one has printed is there.
        ("PYTHONUNBUFFERED", OsStr::new("1")),
    ]
    .into_iter()
    .map(|(name, value)| {
        let mut entry = OsString::from(name);
        entry.push("=");
        entry.push(value);
        entry
    })
    .collect()
}

/// An environment with these entries, in the place of those of the same names.
pub(super) fn replaced(
    environment: Vec<OsString>,
    entries: impl Iterator<Item = OsString>,
) -> Vec<OsString> {
    let name =
        |entry: &OsString| entry.as_bytes().split(|byte| *byte == b'=').next().map(<[u8]>::to_vec);
    entries.fold(environment, |mut environment, entry| {
        match environment.iter_mut().find(|other| name(other) == name(&entry)) {
            Some(other) => *other = entry,
            None => environment.push(entry),
        }
        environment
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_call_asks_for_becomes_a_script() {
        let command = |command| BashArguments { run: Run::Command(command), ..Default::default() };
        let bash = |arguments: &BashArguments<'_>| script_of(arguments, Shell::Bash, true);
        assert_eq!(bash(&command("echo 'a'\n")), "echo 'a'\n");
        let all = BashArguments {
            workdir: Some("-"),
            env: vec![("A", "it's"), ("B", "")],
            stdin: Some("x"),
            ..command("echo 'a'")
        };
        let prefix = r"cd -- './-' || exit; export A='it'\''s' B=''; ";
        assert_eq!(bash(&all), format!("{prefix}echo 'a'"));
        let words = vec!["-x", "$HOME", "a b"];
        let program = BashArguments { run: Run::Program(words), ..Default::default() };
        assert_eq!(bash(&program), "exec -- '-x' '$HOME' 'a b'");
        assert_eq!(script_of(&program, Shell::Sh, true), "exec '-x' '$HOME' 'a b'");
        let elsewhere = BashArguments { workdir: Some("/workspace/a"), ..command("x") };
        let script = script_of(&elsewhere, Shell::Sh, false);
        assert_eq!(script, "cd -- '/workspace/a' || exit; x");
        for (directory, seen) in [
            ("/workspace", "./"),
            ("/workspace/a", "./a"),
            ("/workspaces", "/workspaces"),
            ("/tmp/x", "/tmp/x"),
            ("a/../b", "./a/../b"),
        ] {
            assert_eq!(as_seen_from_workspace(directory), seen);
        }
    }

    #[test]
    fn entries_replace_those_of_the_same_name() {
        let entries = |list: &[&str]| -> Vec<_> { list.iter().map(OsString::from).collect() };
        let replaced = replaced(entries(&["A=1", "AB=2"]), entries(&["AB=3", "C=4"]).into_iter());
        assert_eq!(replaced, entries(&["A=1", "AB=3", "C=4"]));
    }

    #[test]
    fn no_shell_has_its_command_as_an_argument() {
        for (shell, begins) in
            [(Shell::Bash, "unset REPLY; exec 5<&-; "), (Shell::Sh, "exec 5<&-; ")]
        {
            let call = shell_call(shell, "xyz 1");
            assert!(call.argv.iter().all(|word| !word.to_string_lossy().contains("xyz")));
            assert_eq!(String::from_utf8(call.script).unwrap(), format!("{begins}xyz 1\n"));
        }
    }
}
