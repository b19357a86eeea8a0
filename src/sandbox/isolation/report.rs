//! What bubblewrap reports (`--json-status-fd`), and what it says when it fails. Pure.

use serde_json::Value;

/// What bubblewrap has reported so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::sandbox) struct StatusReport {
    /// The first process of the sandbox's pid namespace, as numbered outside.
    pub(in crate::sandbox) child_pid: Option<i32>,
    /// The command's exit code, 128 + n for signal n. Only ever there if the command was started.
    pub(in crate::sandbox) exit_code: Option<i32>,
}

impl StatusReport {
    /// Reads the JSON documents that were written to the status pipe. An unfinished last one is
    /// ignored.
    pub(in crate::sandbox) fn parse(text: &[u8]) -> Self {
        let mut report = Self::default();
        let number = |document: &Value, name| {
            let number = document.get(name)?.as_i64()?;
            i32::try_from(number).ok()
        };
        for document in serde_json::Deserializer::from_slice(text).into_iter::<Value>() {
            let Ok(document) = document else { break };
            report.child_pid = report.child_pid.or(number(&document, "child-pid"));
            // A command can reach into the sandbox's first process and make up a code; it must not
            // be able to make up one that means something else here, as -1 does.
            let exit_code = number(&document, "exit-code").map(|code| code & 0xff);
            report.exit_code = report.exit_code.or(exit_code);
        }
        report
    }
}

/// The text without line ends, cut where it is very long.
pub(in crate::sandbox) fn one_line(text: &str) -> String {
    let line: String = text.trim().replace('\n', "; ").chars().take(500).collect();
    if line.is_empty() {
        return "no reason given".to_owned();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_document_by_document() {
        let first = br#"{ "child-pid": 12, "ipc-namespace": 4026532208 }"#;
        let both = [&first[..], b"\n{ \"exit-code\": 137 }\n"].concat();
        assert_eq!(StatusReport::parse(&both[..20]), StatusReport::default());
        assert_eq!(StatusReport::parse(first).child_pid, Some(12));
        assert_eq!(
            StatusReport::parse(&both),
            StatusReport { child_pid: Some(12), exit_code: Some(137) }
        );
        assert_eq!(StatusReport::parse(b"\xff{"), StatusReport::default());
        for (made_up, taken_for) in [("-1", 255), ("4242", 146), ("2147483647", 255)] {
            let report = StatusReport::parse(format!("{{\"exit-code\": {made_up}}}").as_bytes());
            assert_eq!(report.exit_code, Some(taken_for), "{made_up}");
        }
    }
}
