//! The program's exit codes: explicit numbers that scripts may rely on.
//!
//! Also decides which one wins when a run has several things to say ([`Verdict::exit_code`]).
//! A number that is ever retired stays reserved.

/// How the program ended. The discriminant is the process's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitCode {
    /// Every call got a result of its tool. A tool that fails is a result too.
    Ok = 0,
    /// Some call got no result of its tool: sandbox lost, never ran, cancelled, ….
    CallsWithoutResult = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Some line of the input is malformed – the others ran –, or there is no call in it at all.
    MalformedInput = 3,
    /// The input could not be read, or the results could not be written.
    Io = 4,
    /// The executor or its sandbox could not start. Nothing ran.
    NotStarted = 5,
    /// Ctrl-C, SIGTERM or SIGHUP ended the run before its end, or any command during its start.
    Interrupted = 130,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// The text of `--help` about the codes of `replay`, and of the program as a whole.
pub(crate) const HELP: &str = "\
Exit codes:
  0    every call got a result (a tool that fails is a result)
  1    some call got no result of its tool: never_ran, cancelled, sandbox_lost,
       backend_failed, external_failed, isolation_unavailable, image_unavailable,
       image_unusable, spec_unsupported, trajectory_expired
  2    the command line is wrong
  3    some line of the input is malformed (the others ran), or no call is in it
  4    the input could not be read (a directory, a cut archive, ...), or the
       results could not be written
  5    the executor could not start
  130  interrupted by Ctrl-C, SIGTERM or SIGHUP
Where several apply, the first of 4, 130, 3, 1 is used.";

/// The text of `--help` about the codes of the servers.
pub(crate) const SERVER_HELP: &str = "\
Exit codes:
  0    a signal ended it, or it was unused for as long as --exit-when-unused says
  2    the command line is wrong
  5    it could not start
  130  a signal came before it listened";

/// The text of `--help` about the codes of `reap`.
pub(crate) const REAP_HELP: &str = "\
Exit codes:
  0    the list was printed, and what was to be removed was
  2    the command line is wrong
  4    the list could not be printed
  5    Slurm does not answer or refuses, or a run that was named goes on
  130  interrupted by Ctrl-C, SIGTERM or SIGHUP";

/// The text of `--help` about the codes of `unshare`.
pub(crate) const UNSHARE_HELP: &str = "\
Exit codes:
  those of the program, or
  2    the command line is wrong
  5    there are no such user ids, or the program cannot be started";

/// The text of `--help` about the codes of `image`.
pub(crate) const IMAGE_HELP: &str = "\
Exit codes:
  0    it is done
  1    an image is in use, and stays
  2    the command line is wrong
  3    something is no image, or none for this machine
  4    an image cannot be had: it is not there, or cannot be read; or the store
       cannot be used: the disk is full, ...
  130  interrupted by Ctrl-C, SIGTERM or SIGHUP; what was unpacked whole stays
Of several images each is tried; the first failure says the code.";

/// What a finished run has to say about itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Verdict {
    /// Reading the input or writing the results failed.
    pub(crate) io_failed: bool,
    /// A signal ended the run before its end.
    pub(crate) interrupted: bool,
    /// At least one line was malformed, or there was no call.
    pub(crate) malformed_input: bool,
    /// At least one call got no result of its tool.
    pub(crate) calls_without_result: bool,
}

impl Verdict {
    /// The one exit code: what makes the results least complete comes first.
    pub(crate) fn exit_code(self) -> ExitCode {
        if self.io_failed {
            ExitCode::Io
        } else if self.interrupted {
            ExitCode::Interrupted
        } else if self.malformed_input {
            ExitCode::MalformedInput
        } else if self.calls_without_result {
            ExitCode::CallsWithoutResult
        } else {
            ExitCode::Ok
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_help_text() {
        for code in [
            ExitCode::Ok,
            ExitCode::CallsWithoutResult,
            ExitCode::Usage,
            ExitCode::MalformedInput,
            ExitCode::Io,
            ExitCode::NotStarted,
            ExitCode::Interrupted,
        ] {
            let line = format!("\n  {:<5}", code as u8);
            assert!(HELP.contains(&line), "{code:?} is not in the help text");
        }
    }

    #[test]
    fn the_worst_of_several_verdicts_wins() {
        let mut verdict = Verdict::default();
        assert_eq!(verdict.exit_code(), ExitCode::Ok);
        verdict.calls_without_result = true;
        assert_eq!(verdict.exit_code(), ExitCode::CallsWithoutResult);
        verdict.malformed_input = true;
        assert_eq!(verdict.exit_code(), ExitCode::MalformedInput);
        verdict.interrupted = true;
        assert_eq!(verdict.exit_code(), ExitCode::Interrupted);
        verdict.io_failed = true;
        assert_eq!(verdict.exit_code(), ExitCode::Io);
    }
}
