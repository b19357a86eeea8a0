//! The messages between the engine and the first process of a warm sandbox, as bytes. Part of both
//! programs, so it is plain `core`.

/// Where the program finds its socket, a `SOCK_SEQPACKET`.
pub(crate) const SOCKET_FD: i32 = 4;

/// What a message begins with: a kind, a flag, two zeros, the run's number and two more numbers.
pub(crate) const HEADER: usize = 16;

/// The longest message. A shell call that does not fit goes by a script.
pub(crate) const LONGEST: usize = 32 * 1024;

/// To the program: run this. The header's first number says how many strings follow, each with a
/// NUL at its end: the arguments, the `$0` first. With it come two to four file descriptors:
/// standard input, if the flag says so, standard output, standard error, and what becomes
/// descriptor 5.
pub(crate) const RUN: u8 = b'r';
/// To the program: kill what runs under this number; at once, or after a SIGTERM and a moment, if
/// the flag says so.
pub(crate) const KILL: u8 = b'k';

/// From the program: it is ready for its first run.
pub(crate) const READY: u8 = b'R';
/// From the program: the main process has ended, and what it left behind is being killed.
pub(crate) const ENDED: u8 = b'e';
/// From the program: no process of the run is left. The numbers are the main process's wait
/// status, and the error number where there never was one. The flag says that something else was
/// left behind that the next run would find.
pub(crate) const DONE: u8 = b'd';

/// The flag of an order to run with which a standard input comes.
pub(crate) const STDIN: u8 = 1;

/// The flag of an order to kill that asks with SIGTERM first.
pub(crate) const ASK_FIRST: u8 = 1;

/// The flag of a run that left traces.
pub(crate) const TRACES: u8 = 1;

/// The header of every message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: u8,
    pub(crate) flag: u8,
    pub(crate) run: u32,
    pub(crate) numbers: [i32; 2],
}

impl Header {
    pub(crate) fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.kind;
        bytes[1] = self.flag;
        bytes[4..8].copy_from_slice(&self.run.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.numbers[0].to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.numbers[1].to_ne_bytes());
        bytes
    }

    /// `None` where there are fewer bytes than a header has.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4)?;
            Some([bytes[0], bytes[1], bytes[2], bytes[3]])
        };
        Some(Self {
            kind: *bytes.first()?,
            flag: *bytes.get(1)?,
            run: u32::from_ne_bytes(word(4)?),
            numbers: [i32::from_ne_bytes(word(8)?), i32::from_ne_bytes(word(12)?)],
        })
    }
}
