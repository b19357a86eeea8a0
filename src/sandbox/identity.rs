//! Who a command is: its user's numbers, name and home directory, and its machine's name; and the
//! files of `/etc` by which programs look these up.
//!
//! Programs ask in different ways – the environment, the user database, the host name – and must
//! get one answer: ssh, Java and Go take the home directory from the user database. The engine
//! finds it out once, when it makes its directories. Pure but for [`Identity::detect`].

use std::path::{Path, PathBuf};

use super::user::CommandUser;

/// The host name in every sandbox.
pub(super) const HOST_NAME: &str = "sandbox";

/// Who the commands of an engine are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    uid: u32,
    gid: u32,
    name: String,
    home: PathBuf,
}

impl Identity {
    /// That of commands that run as `user`, or as this process. Blocks for the reading of
    /// `/etc/passwd`.
    pub(crate) fn detect(user: Option<CommandUser>) -> Self {
        let of_process =
            || (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let (uid, gid) = user.map_or_else(of_process, |user| (user.inside(), user.inside()));
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        Self::new(&passwd, uid, gid)
    }

    /// That of this user and group, which has its name from a file like `/etc/passwd`: `user` where
    /// that has none.
    fn new(passwd: &str, uid: u32, gid: u32) -> Self {
        let name = passwd
            .lines()
            .find(|line| number(line, 2) == Some(uid))
            .map_or("user", |line| field(line, 0))
            .to_owned();
        let is_plain =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '@' | '+');
        let home = match &*name {
            _ if uid == 0 => PathBuf::from("/root"),
            name if !name.is_empty() && !name.starts_with('.') && name.chars().all(is_plain) => {
                Path::new("/home").join(name)
            }
            // A name that a path, or a line of passwd, had better not hold.
            _ => PathBuf::from("/home/user"),
        };
        Self { uid, gid, name, home }
    }

    /// A user of an image.
    pub(super) fn of_image(uid: u32, gid: u32, name: &str, home: &Path) -> Self {
        Self { uid, gid, name: name.to_owned(), home: home.to_owned() }
    }

    /// The user's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The user's home directory, inside a sandbox.
    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    /// A sandbox's `/etc/passwd`: the user, and the host's others.
    pub(super) fn passwd(&self, hosts: &str, shell: &str) -> String {
        let Self { uid, gid, name, home } = self;
        let mut text = format!("{name}:x:{uid}:{gid}:{name}:{}:{shell}\n", home.display());
        let is_another = |line: &&str| field(line, 0) != name && number(line, 2) != Some(*uid);
        push_lines(&mut text, hosts.lines().filter(is_another));
        text
    }

    /// A sandbox's `/etc/group`: the host's, in which the user's group has a name.
    pub(super) fn group(&self, hosts: &str) -> String {
        let Self { gid, name, .. } = self;
        let mut text = String::new();
        if hosts.lines().any(|line| number(line, 2) == Some(*gid)) {
            push_lines(&mut text, hosts.lines());
        } else {
            push_lines(&mut text, hosts.lines().filter(|line| field(line, 0) != name));
            text.push_str(&format!("{name}:x:{gid}:\n"));
        }
        text
    }
}

/// A sandbox's `/etc/hosts`: the host's, in which the sandbox's own name is that of its loopback
/// interface.
pub(super) fn hosts(hosts: &str) -> String {
    let mut text = String::new();
    if !hosts.lines().any(|line| names_host(line, "localhost")) {
        text.push_str("127.0.0.1\tlocalhost\n");
    }
    text.push_str(&with_host(hosts, HOST_NAME));
    text
}

/// A file like `/etc/hosts`, in which this name is that of the loopback interface.
pub(super) fn with_host(hosts: &str, name: &str) -> String {
    let mut text = String::new();
    push_lines(&mut text, hosts.lines().filter(|line| !names_host(line, name)));
    // Not 127.0.1.1: what listens at the name is reached by `localhost`, too.
    text.push_str(&format!("127.0.0.1\t{name}\n"));
    text
}

/// Whether a line of `/etc/hosts` gives this name an address.
fn names_host(line: &str, name: &str) -> bool {
    let entry = line.split('#').next().unwrap_or_default();
    entry.split_ascii_whitespace().skip(1).any(|one| one == name)
}

/// One field of a line of `/etc/passwd` or `/etc/group`.
fn field(line: &str, index: usize) -> &str {
    line.split(':').nth(index).unwrap_or_default()
}

fn number(line: &str, index: usize) -> Option<u32> {
    field(line, index).parse().ok()
}

fn push_lines<'a>(text: &mut String, lines: impl Iterator<Item = &'a str>) {
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\n\
                          me:x:1000:1000::/data/me:/bin/sh\nodd:x:7:7:::\n../x:x:8:8:::";

    #[test]
    fn a_users_name_and_home_are_those_of_its_number() {
        for (uid, name, home) in [
            (1000, "me", "/home/me"),
            (0, "root", "/root"),
            (9, "user", "/home/user"),
            (8, "../x", "/home/user"),
        ] {
            let identity = Identity::new(PASSWD, uid, 5);
            assert_eq!((identity.name(), identity.home()), (name, Path::new(home)));
            let passwd = identity.passwd(PASSWD, "/bin/bash");
            let lines: Vec<_> =
                passwd.lines().filter(|line| number(line, 2) == Some(uid)).collect();
            assert_eq!(lines, [format!("{name}:x:{uid}:5:{name}:{home}:/bin/bash")]);
            assert!(passwd.contains("\nbroken\n") && passwd.contains("\nodd:x:7:7:::\n"));
        }
        // A user of the host's that has the name that another is given.
        let taken = "user:x:1:1:::\n";
        let passwd = Identity::new(taken, 9, 9).passwd(taken, "/bin/sh");
        assert_eq!(passwd, "user:x:9:9:user:/home/user:/bin/sh\n");
    }

    #[test]
    fn the_users_group_has_a_name() {
        let identity = Identity::new(PASSWD, 1000, 50);
        assert_eq!(identity.group("staff:x:50:\nme:x:7:"), "staff:x:50:\nme:x:7:\n");
        assert_eq!(identity.group("a:x:1:\nme:x:7:"), "a:x:1:\nme:x:50:\n");
    }

    #[test]
    fn the_sandboxs_own_name_is_that_of_its_loopback_interface() {
        assert_eq!(hosts(""), "127.0.0.1\tlocalhost\n127.0.0.1\tsandbox\n");
        let host = "127.0.0.1 localhost # sandbox\n10.0.0.1 sandbox other\n10.0.0.2 it";
        let expected = "127.0.0.1 localhost # sandbox\n10.0.0.2 it\n127.0.0.1\tsandbox\n";
        assert_eq!(hosts(host), expected);
    }
}
