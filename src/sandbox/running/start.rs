//! Starting a command's processes: bubblewrap, which makes its sandbox, or a reaper where there is
//! none.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{Container, Gate};
use crate::sandbox::host::{Host, environment};
use crate::sandbox::isolation::{self, Bubblewrap, Handshake, Sandbox, StatusReport};
use crate::sandbox::reaper::{self, Report};
use crate::sandbox::shell::{self, CLOSED_GATE, INLINE_COMMAND_LIMIT};
use crate::sandbox::spawn::{self, CStringArray, Child};
use crate::sandbox::supervisor::CommandSpec;

/// Starts bubblewrap, which waits with the command for the gate.
pub(super) fn start_sandboxed(
    spec: &CommandSpec,
    host: &Host,
    bubblewrap: &Bubblewrap,
    [stdin, stdout, stderr]: [BorrowedFd<'_>; 3],
) -> io::Result<(Child, OwnedFd, Container)> {
    let shell = bubblewrap.layout.shell;
    let call = shell::shell_call(shell, &spec.command, true, host.open_files, INLINE_COMMAND_LIMIT);
    let filter = bubblewrap.open_filter()?;
    let sandbox = Sandbox {
        workspace: spec.workspace.path(),
        temporary: spec.workspace.temporary(),
        shown: &[],
        network: spec.network,
        handshake: Handshake::Block,
        seccomp: filter.is_some().then_some(isolation::SECCOMP_FD),
        argv: &call.argv,
    };
    let arguments = CStringArray::new(isolation::bwrap_argv(bubblewrap, &sandbox))?;
    let environment =
        environment(Path::new("/workspace"), Path::new("/tmp"), shell, host, Some(&call))?;
    let script = spawn::memory_file(c"tool-command", CLOSED_GATE)?;
    let (reports, reports_writer) = spawn::pipe()?;
    let (block_reader, block) = spawn::pipe()?;
    let mut fds =
        vec![stdin, stdout, stderr, reports_writer.as_fd(), block_reader.as_fd(), script.as_fd()];
    fds.extend(filter.as_ref().map(AsFd::as_fd));
    let child = spawn::spawn(
        &CString::new(bubblewrap.program.as_os_str().as_bytes())?,
        &arguments,
        &environment,
        &fds,
        host.command_user,
    )?;
    let container = Container::Namespace {
        gate: Some(Gate { script, content: call.script.unwrap_or_default(), _block: block }),
        init: None,
        init_gone: false,
        report: StatusReport::default(),
    };
    Ok((child, reports, container))
}

/// Starts the command under a reaper.
pub(super) fn start_bare(
    spec: &CommandSpec,
    host: &Host,
    stdio: [BorrowedFd<'_>; 3],
) -> io::Result<(Child, OwnedFd, Container)> {
    let call = shell::shell_call(host.shell, &spec.command, false, None, INLINE_COMMAND_LIMIT);
    let script = match &call.script {
        Some(script) => Some(spawn::memory_file(c"tool-command", script)?),
        None => None,
    };
    let reaper = reaper::start(&reaper::Command {
        program: &CString::new(host.shell.path())?,
        environment: &environment(
            spec.workspace.path(),
            spec.workspace.temporary(),
            host.shell,
            host,
            Some(&call),
        )?,
        arguments: &CStringArray::new(call.argv)?,
        directory: spec.workspace.path(),
        stdio,
        script: script.as_ref().map(AsFd::as_fd),
        open_files: host.open_files,
        user: host.command_user,
    })?;
    let container = Container::Reaper { control: Some(reaper.control), report: Report::default() };
    Ok((reaper.child, reaper.report, container))
}
