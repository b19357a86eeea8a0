//! Where the list of a fleet's servers is read from while it runs: a file, or a name with several
//! addresses. Reading blocks; what is read makes sense or is refused whole.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest file.
const MOST_BYTES: u64 = 1024 * 1024;
/// The most servers of a list.
const MOST_SERVERS: usize = 10_000;

/// Where the list is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ServerList {
    /// A file with a URL in each line.
    File(PathBuf),
    /// A name and a port: each address of the name is a server.
    Name(String),
}

impl ServerList {
    /// What it is, for people.
    pub(super) fn what(&self) -> String {
        match self {
            Self::File(path) => format!("the list of sandbox servers {}", path.display()),
            Self::Name(name) => format!("the name {name}"),
        }
    }

    /// The pause between two looks at it.
    pub(super) fn pause(&self) -> Duration {
        match self {
            Self::File(_) => Duration::from_millis(500),
            Self::Name(_) => Duration::from_secs(5),
        }
    }

    /// The URLs that are there now. Blocks: on a file, or on a name server, which may take its
    /// time.
    ///
    /// # Errors
    /// Why there is no list, as one line that says where.
    pub(super) fn read(&self) -> Result<Vec<String>, String> {
        match self {
            Self::File(path) => {
                let text = read_file(path).map_err(|why| format!("{}: {why}", self.what()))?;
                urls(&text).map_err(|why| format!("{}, {why}", self.what()))
            }
            Self::Name(name) => {
                let found = name.to_socket_addrs();
                let found = found.map_err(|error| format!("{}: {error}", self.what()))?;
                // Each once, in an order that does not change with the name server's mood.
                let addresses: BTreeSet<_> = found.collect();
                Ok(addresses.iter().map(|address| format!("http://{address}")).collect())
            }
        }
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut text = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > MOST_BYTES {
        return Err(format!("it is longer than {MOST_BYTES} bytes"));
    }
    String::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())
}

/// The URLs of a list: one in each line; empty lines, and what follows a `#`, are left out. Pure.
///
/// # Errors
/// What is wrong, with the number of the line.
fn urls(text: &str) -> Result<Vec<String>, String> {
    let mut seen = BTreeSet::new();
    let mut urls = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let wrong = |why: &str| Err(format!("line {number}: {why}: {line:?}"));
        if line.contains(char::is_whitespace) {
            return wrong("a line has one URL");
        }
        if !line.starts_with("http://") && !line.starts_with("https://") {
            return wrong("a URL begins with http:// or https://");
        }
        let url = line.trim_end_matches('/');
        if !seen.insert(url) {
            return wrong("the server is there twice");
        }
        urls.push(url.to_owned());
        if urls.len() > MOST_SERVERS {
            return Err(format!("line {number}: there are more than {MOST_SERVERS} servers"));
        }
    }
    Ok(urls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_list_has_a_url_in_each_line_and_comments() {
        let text = "# ours\nhttp://a:1/ \n\n  https://b:2 # spare\r\n";
        assert_eq!(urls(text).unwrap(), ["http://a:1", "https://b:2"]);
        assert!(urls("").unwrap().is_empty());
        for (text, why) in [
            ("http://a:1 http://b:1", "line 1: a line has one URL"),
            ("\na:1", "line 2: a URL begins with"),
            ("http://a:1\nhttp://a:1/", "line 2: the server is there twice"),
        ] {
            let error = urls(text).unwrap_err();
            assert!(error.starts_with(why), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let missing = ServerList::File("/nonexistent/list".into()).read().unwrap_err();
        assert!(missing.contains("/nonexistent/list"), "{missing}");
        let directory = ServerList::File(std::env::temp_dir()).read().unwrap_err();
        assert!(directory.contains("irectory"), "{directory}");
        let endless = ServerList::File("/dev/zero".into()).read().unwrap_err();
        assert!(endless.contains("longer than"), "{endless}");
    }

    #[test]
    fn each_address_of_a_name_is_a_server() {
        let list = ServerList::Name("127.0.0.1:8080".to_owned());
        assert_eq!(list.read().unwrap(), ["http://127.0.0.1:8080"]);
        let list = ServerList::Name("localhost:8080".to_owned());
        assert!(list.read().unwrap().contains(&"http://127.0.0.1:8080".to_owned()));
        assert!(ServerList::Name("no port".to_owned()).read().is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            if let Ok(urls) = urls(&text) {
                for url in urls {
                    prop_assert!(url.starts_with("http") && !url.contains(char::is_whitespace));
                }
            }
        }
    }
}
