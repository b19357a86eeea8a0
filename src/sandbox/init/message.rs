//! The messages between the engine and the first process of a jail, as bytes. Part of both
//! programs, so it is plain `core`.

/// Where the program finds its socket, a `SOCK_SEQPACKET`.
pub(crate) const SOCKET_FD: i32 = 4;

/// What a message begins with: a kind, a flag, two zeros, the run's number and two more numbers.
pub(crate) const HEADER: usize = 16;

/// The longest message. Commands are none of it: they go by a script.
pub(crate) const LONGEST: usize = 32 * 1024;

/// To the program, once and first: set the jail up by these steps. The header's first number says
/// how many they are, the second which [`handle`]s it is to hand over with [`READY`]. With it come
/// file descriptors: of mounts that are nowhere yet, and of cgroups. They are the first sources.
pub(crate) const SET_UP: u8 = b's';
/// To the program: run this. The header's first number says how many strings follow, each with a
/// NUL at its end: the arguments, the `$0` first. With it come file descriptors: standard input if
/// the flag has [`WITH_INPUT`], standard output, standard error, what becomes descriptor 5 if the
/// flag has [`WITH_SCRIPT`], and what becomes [`VERDICT_FD`] if it has [`WITH_VERDICT`].
pub(crate) const RUN: u8 = b'r';
/// To the program: kill what runs under this number. With [`ASK_FIRST`] after a SIGTERM and a
/// moment, and what earlier runs have left is spared if that can be done; else at once, and with
/// everything else in the jail.
pub(crate) const KILL: u8 = b'k';
/// To the program: read what comes from these descriptors, and forget it, for as long as one can
/// write to them. They are the pipes of a run that has [`KEPT`] something.
pub(crate) const DRAIN: u8 = b'd';
/// To the program: send the first number as a signal to the process group of the main process that
/// runs under this number.
pub(crate) const SIGNAL: u8 = b'i';

/// From the program: the jail is complete, and waits for its first run. With it come descriptors,
/// in the order of their [`handle`]s, whose sum is the header's first number.
pub(crate) const READY: u8 = b'R';
/// From the program: the step with this number (in the run's place) failed with the error that is
/// the first number. The program ends.
pub(crate) const FAILED: u8 = b'F';
/// From the program: the main process has ended, and what it left behind is being killed.
pub(crate) const ENDED: u8 = b'e';
/// From the program: what a run has left running a moment after its main process ended, and is
/// asked to end now. The header's first number says how many processes that are. There follow their
/// names, each once and with a NUL at its end: [`MOST_NAMES`] at most.
pub(crate) const REST: u8 = b'l';
/// From the program: the same of what goes on running, as the run [may leave](MAY_KEEP) it.
pub(crate) const KEPT: u8 = b'K';
/// From the program: no process of the run is left but those that were [kept](KEPT). The numbers
/// are the main process's wait status, and the error number where there never was one. The flag has
/// [`EARLIER_ENDED`] if what earlier runs had left was ended, too.
pub(crate) const DONE: u8 = b'd';

/// The flag of an order to kill that asks with SIGTERM first.
pub(crate) const ASK_FIRST: u8 = 1;
/// The flag of a run with a standard input of its own.
pub(crate) const WITH_INPUT: u8 = 1;
/// The flag of a run with a script.
pub(crate) const WITH_SCRIPT: u8 = 2;
/// The flag of a run with a descriptor for a verdict.
pub(crate) const WITH_VERDICT: u8 = 8;

/// The number of that descriptor.
pub(crate) const VERDICT_FD: i32 = 6;
/// The flag of a run whose background processes go on running after its end.
pub(crate) const MAY_KEEP: u8 = 4;
/// The flag of a run that is done, and with it all that earlier ones had left.
pub(crate) const EARLIER_ENDED: u8 = 1;

/// The most processes that are counted; this stands for as many or more.
pub(crate) const MOST_COUNTED: usize = 1000;
/// The most names of processes in a message.
pub(crate) const MOST_NAMES: usize = 10;
/// The longest name of a process, in bytes: the kernel's.
pub(crate) const NAME_LENGTH: usize = 15;

/// The most descriptors that come with a message: the kernel takes no more than 253 at once.
pub(crate) const MOST_FDS: usize = 136;

/// What a first process hands over when it is ready: descriptors, each a bit of a number.
pub(crate) mod handle {
    /// The root directory that its programs see, to look beneath.
    pub(crate) const ROOT: i32 = 1;
    /// Its user namespace.
    pub(crate) const USER: i32 = 1 << 1;
    /// Its network namespace.
    pub(crate) const NETWORK: i32 = 1 << 2;
    /// Its namespace of System V objects and queues.
    pub(crate) const IPC: i32 = 1 << 3;
    /// That of its host name.
    pub(crate) const HOST_NAME: i32 = 1 << 4;
    /// That of its mounts.
    pub(crate) const MOUNTS: i32 = 1 << 5;
    /// The listening socket of its proxy.
    pub(crate) const PROXY: i32 = 1 << 6;

    /// The most that there are.
    pub(crate) const MOST: usize = 8;
}

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

/// What a step does. Each has a number and a text, which holds strings with a NUL at the end of
/// each.
pub(crate) mod step {
    /// What a step begins with: its kind, its flag, the text's length and the number.
    pub(crate) const HEADER: usize = 16;

    /// Writes the second string to the file that the first names.
    pub(crate) const WRITE: u8 = b'w';
    /// Moves this process into the cgroup of version 1 whose file `tasks` is the source of this
    /// number. With [`OPTIONAL`] it may stay where it is.
    pub(crate) const JOIN_CGROUP: u8 = b'j';
    /// Sees no cgroup above its own any more.
    pub(crate) const OWN_CGROUPS: u8 = b'y';
    /// Takes all mounts out of the host's propagation.
    pub(crate) const MAKE_PRIVATE: u8 = b'p';
    /// Takes hold of the tree at a path of the host, with these mount attributes: the source with
    /// the next number. With [`OPTIONAL`] it may be missing, or closed to its user.
    pub(crate) const SOURCE: u8 = b's';
    /// Mounts a tmpfs with the options of the second string at the first, which any directory will
    /// do for, and makes it the root. The old one stays mounted above it.
    pub(crate) const ROOT: u8 = b'r';
    /// Makes a directory with this mode.
    pub(crate) const DIRECTORY: u8 = b'd';
    /// Makes an empty file with this mode.
    pub(crate) const FILE: u8 = b'f';
    /// Makes a symbolic link: its target, its place.
    pub(crate) const LINK: u8 = b'l';
    /// Mounts the source of this number at a path.
    pub(crate) const ATTACH: u8 = b'a';
    /// Mounts a file system: its type, its place, its options; with these flags of `mount(2)`.
    pub(crate) const MOUNT: u8 = b'm';
    /// Sets attributes of the mount at a path.
    pub(crate) const ATTRIBUTES: u8 = b'o';
    /// Sets the host name.
    pub(crate) const HOST_NAME: u8 = b'h';
    /// Brings the loopback interface up.
    pub(crate) const LOOPBACK: u8 = b'n';
    /// Makes the socket that the proxy's clients connect to, at this port of the loopback
    /// interface.
    pub(crate) const LISTEN: u8 = b't';
    /// Lets go of the old root.
    pub(crate) const FORGET_HOST: u8 = b'x';
    /// Lets go of all that is mounted at a directory, and removes that.
    pub(crate) const CLEAR: u8 = b'u';
    /// Moves what is mounted at the second string to the same place beneath the directory that the
    /// first names, where links lead nowhere else; what is missing of the place is made. With
    /// [`NO_LINKS`] there may be none on the way. With [`OPTIONAL`] nothing may be mounted there.
    pub(crate) const MOVE: u8 = b'v';
    /// Makes a directory at which something is mounted the root, and lets go of the old one.
    pub(crate) const CHANGE_ROOT: u8 = b'g';
    /// Enters a directory. With [`MAKE`] it is made if it is missing, for the [`USER`], and those
    /// above it; with [`OR_ROOT`] it is the root directory where that fails.
    pub(crate) const ENTER: u8 = b'c';
    /// Has all that is run be another user: the number's lower half, with the group that is the
    /// upper one, and the groups of the text, as many as [`MOST_GROUPS`] of 4 bytes each.
    pub(crate) const USER: u8 = b'e';
    /// Has the files that are made by further steps belong to the group of this number.
    pub(crate) const GROUP: u8 = b'i';
    /// Gives up all capabilities but those of the number, a bit each, and all ways to new ones.
    pub(crate) const DROP_RIGHTS: u8 = b'k';
    /// Loads the filter of system calls that is the text.
    pub(crate) const FILTER: u8 = b'b';

    /// The flag of a source that may be missing, or of a cgroup that is done without.
    pub(crate) const OPTIONAL: u8 = 1;
    /// The flag of a place to which no link may lead.
    pub(crate) const NO_LINKS: u8 = 2;
    /// The flag of a directory that is made if it is missing.
    pub(crate) const MAKE: u8 = 4;
    /// The flag of a directory that can be done without.
    pub(crate) const OR_ROOT: u8 = 8;

    /// The most groups of a user beside its own.
    pub(crate) const MOST_GROUPS: usize = 64;

    /// The most cgroups that a process is to join.
    pub(crate) const MOST_CGROUPS: usize = 8;

    /// The most sources that a jail may have, those of the engine among them.
    pub(crate) const MOST_SOURCES: usize = 256;

    /// A step as it is in a message.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Head {
        pub(crate) kind: u8,
        pub(crate) flag: u8,
        pub(crate) length: u16,
        pub(crate) number: u64,
    }

    impl Head {
        #[allow(dead_code, reason = "the first process only reads steps")]
        pub(crate) fn to_bytes(self) -> [u8; HEADER] {
            let mut bytes = [0; HEADER];
            bytes[0] = self.kind;
            bytes[1] = self.flag;
            bytes[2..4].copy_from_slice(&self.length.to_ne_bytes());
            bytes[8..16].copy_from_slice(&self.number.to_ne_bytes());
            bytes
        }

        /// The first step of `bytes`, its text, and the rest. `None` if it is not whole.
        #[allow(dead_code, reason = "the engine only writes steps")]
        pub(crate) fn split_first(bytes: &[u8]) -> Option<(Self, &[u8], &[u8])> {
            let head: &[u8; HEADER] = bytes.get(..HEADER)?.try_into().ok()?;
            let [kind, flag, low, high, ..] = *head;
            let number: [u8; 8] = head[8..].try_into().ok()?;
            let length = u16::from_ne_bytes([low, high]);
            let number = u64::from_ne_bytes(number);
            let text = bytes.get(HEADER..HEADER + usize::from(length))?;
            let rest = &bytes[HEADER + usize::from(length)..];
            Some((Self { kind, flag, length, number }, text, rest))
        }
    }
}
