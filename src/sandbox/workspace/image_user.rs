//! Whom an image's commands run as: what a user's name means by the image's `/etc/passwd` and
//! `/etc/group`, as container engines have it. Pure; what the files say is hostile.

use std::path::{Component, Path, PathBuf};

use crate::sandbox::jail::User;

/// The most groups of a user beside its own.
const MOST_GROUPS: usize = 64;
/// The longest name of a user.
const LONGEST_NAME: usize = 64;

/// A user of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::sandbox) struct ImageUser {
    /// Its numbers.
    pub(super) ids: User,
    /// Its name; its number where it has none.
    pub(super) name: String,
    /// Its home directory, absolute.
    pub(super) home: PathBuf,
}

impl ImageUser {
    /// The user that `wanted` names: `user`, `uid`, `user:group` or `uid:gid`; root if it is empty.
    /// A slot has as many ids as `ids`.
    ///
    /// # Errors
    /// There is none, or it has an id that slots do not have: as one line.
    pub(super) fn find(wanted: &str, passwd: &str, group: &str, ids: u32) -> Result<Self, String> {
        let (user, wanted_group) = match wanted.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (wanted, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let id = user.parse::<u32>().ok();
        let line = passwd.lines().find(|line| match id {
            Some(id) => number(line, 2) == Some(id),
            None => field(line, 0) == user,
        });
        let uid = match (id, line.and_then(|line| number(line, 2))) {
            (Some(id), _) | (None, Some(id)) => id,
            (None, None) => {
                return Err(format!("the image's /etc/passwd has no user {user:?}"));
            }
        };
        let name = line.map(|line| field(line, 0)).filter(|name| is_plain(name));
        let gid = match wanted_group {
            None | Some("") => line.and_then(|line| number(line, 3)).unwrap_or(0),
            Some(wanted) => match wanted.parse() {
                Ok(gid) => gid,
                Err(_) => group
                    .lines()
                    .find(|line| field(line, 0) == wanted)
                    .and_then(|line| number(line, 2))
                    .ok_or_else(|| format!("the image's /etc/group has no group {wanted:?}"))?,
            },
        };
        for (what, id) in [("user", uid), ("group", gid)] {
            if id >= ids {
                return Err(format!(
                    "the image's {what} has the number {id}, and a slot has {ids}"
                ));
            }
        }
        // Who names a group has no others.
        let is_member = |line: &&str| {
            let members = field(line, 3);
            name.is_some_and(|name| members.split(',').any(|member| member == name))
        };
        let mut groups: Vec<u32> = match wanted_group {
            None => group.lines().filter(is_member).filter_map(|line| number(line, 2)).collect(),
            Some(_) => Vec::new(),
        };
        groups.retain(|id| *id < ids && *id != gid);
        groups.truncate(MOST_GROUPS);
        let home = line.map(|line| Path::new(field(line, 5))).filter(|home| is_direct(home));
        let home = match (home, uid) {
            (Some(home), _) => home.to_owned(),
            (None, 0) => PathBuf::from("/root"),
            (None, _) => PathBuf::from("/"),
        };
        let name = name.map_or_else(|| uid.to_string(), str::to_owned);
        Ok(Self { ids: User { uid, gid, groups }, name, home })
    }
}

/// Whether a name can be in an environment and a prompt.
fn is_plain(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '@' | '+');
    !name.is_empty() && name.len() <= LONGEST_NAME && name.chars().all(is_plain)
}

/// Whether a path is absolute, without `..`, and can be shown.
pub(super) fn is_direct(path: &Path) -> bool {
    let is_shown =
        path.to_str().is_some_and(|path| path.len() < 1024 && !path.contains(char::is_control));
    is_shown && path.is_absolute() && !path.components().any(|part| part == Component::ParentDir)
}

/// One field of a line of `/etc/passwd` or `/etc/group`.
fn field(line: &str, index: usize) -> &str {
    line.split(':').nth(index).unwrap_or_default()
}

fn number(line: &str, index: usize) -> Option<u32> {
    field(line, index).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\nme:x:1000:50::/home/me:/bin/sh\n\
                          big:x:70000:1:::\nup:x:7:7::/../etc:\nrelative:x:8:8::x:\n$(id):x:9:9::/:\n";
    const GROUP: &str = "root:x:0:\nstaff:x:50:me\nwheel:x:10:a,me,b\nvast:x:70000:me\n";

    fn find(wanted: &str) -> Result<(u32, u32, Vec<u32>, String, String), String> {
        let ImageUser { ids, name, home } = ImageUser::find(wanted, PASSWD, GROUP, 65_536)?;
        Ok((ids.uid, ids.gid, ids.groups, name, home.display().to_string()))
    }

    #[test]
    fn a_user_is_who_the_image_says() {
        let of = |uid, gid, groups: &[u32], name: &str, home: &str| {
            Ok((uid, gid, groups.to_vec(), name.to_owned(), home.to_owned()))
        };
        assert_eq!(find(""), of(0, 0, &[], "root", "/root"));
        assert_eq!(find("me"), of(1000, 50, &[10], "me", "/home/me"));
        assert_eq!(find("1000"), find("me"));
        assert_eq!(find("me:wheel"), of(1000, 10, &[], "me", "/home/me"));
        assert_eq!(find("me:12"), of(1000, 12, &[], "me", "/home/me"));
        assert_eq!(find("1234"), of(1234, 0, &[], "1234", "/"));
        assert_eq!(find("1234:1"), of(1234, 1, &[], "1234", "/"));
        assert_eq!(find(":wheel"), of(0, 10, &[], "root", "/root"));
    }

    #[test]
    fn what_a_file_lies_about_is_left_out_or_refused() {
        assert_eq!(find("nobody").unwrap_err(), "the image's /etc/passwd has no user \"nobody\"");
        assert!(find("me:nobody").unwrap_err().contains("no group"));
        for wanted in ["big", "70000", "0:70000"] {
            assert!(find(wanted).unwrap_err().contains("and a slot has 65536"), "{wanted}");
        }
        assert_eq!(find("up").unwrap().4, "/");
        assert_eq!(find("relative").unwrap().4, "/");
        assert_eq!(find("9").unwrap().3, "9");
        let empty = ImageUser::find("", "", "", 65_536).unwrap();
        assert_eq!((empty.name.as_str(), empty.home), ("0", PathBuf::from("/root")));
    }
}
