//! Artifacts, over a backend that has some.

use std::io::Write;

use serde_json::json;
use tool_executor::artifact::{
    ArchiveArtifacts, ArchiveSummary, Artifact, ArtifactEntry, ArtifactError, ArtifactList,
    ListArtifacts, ReadArtifact,
};
use tool_executor::backend::{Artifacts, Backend, Container, Execution, ResetReply, SlotRef};
use tool_executor::server::SandboxServer;
use tool_executor::{BackendError, Interrupt};

use super::{config, has};
use crate::fakes::{Echoes, one_container};
use crate::http_client::Client;

/// A few files, the same in each slot.
struct Shelf;

impl Backend for Shelf {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        Ok(one_container(1))
    }

    fn execute(&self, _addr: &str, _batch: Vec<Execution>) {}

    fn reset(&self, _slot: &SlotRef, reply: ResetReply) {
        reply.send(Ok(()));
    }

    fn artifacts(&self) -> Option<&dyn Artifacts> {
        Some(self)
    }
}

impl Artifacts for Shelf {
    fn read(&self, slot: &SlotRef, request: &ReadArtifact) -> Result<Artifact, ArtifactError> {
        assert_eq!(&*slot.name, "slot_0");
        let path = request.path.clone();
        match &*path {
            "f.txt" => {
                // What was asked for, to be seen by the test.
                let content = format!("\u{e9} {} ", request.max_bytes).into_bytes();
                let mut artifact = Artifact::new(path, request.offset, content)
                    .with_file_size(10)
                    .with_truncated(true)
                    .with_mime("text/plain".to_owned());
                artifact.sha256 = request.sha256.then(|| "part".to_owned());
                artifact.file_sha256 = request.file_sha256.then(|| "whole".to_owned());
                Ok(artifact)
            }
            "bytes" => Ok(Artifact::new(path, 0, b"a\xff".to_vec())),
            "" | "d" => Err(ArtifactError::NotAFile(path)),
            "/etc/passwd" => Err(ArtifactError::Outside),
            "lost" => Err(ArtifactError::SandboxLost("why".to_owned())),
            "broken" => Err(ArtifactError::Io(
                "cannot read it".to_owned(),
                std::io::Error::other("a broken disk"),
            )),
            "panic" => panic!("expected by this test"),
            _ => Err(ArtifactError::NotFound(path)),
        }
    }

    fn list(
        &self,
        _slot: &SlotRef,
        request: &ListArtifacts,
    ) -> Result<ArtifactList, ArtifactError> {
        if request.path == "fifo" {
            return Err(ArtifactError::UnsupportedType("fifo".to_owned()));
        }
        let path = format!("{}/{}", request.path, request.recursive);
        let size = request.max_entries as u64;
        Ok(ArtifactList::new(vec![ArtifactEntry::directory(path, size, 1795330170.547766)], true))
    }

    fn archive(
        &self,
        _slot: &SlotRef,
        request: &ArchiveArtifacts,
        into: &mut (dyn Write + Send),
    ) -> Result<ArchiveSummary, ArtifactError> {
        if request.max_bytes < 100 {
            return Err(ArtifactError::TooLarge { bytes: 265, max: request.max_bytes });
        }
        into.write_all(request.path.as_bytes()).unwrap();
        let entry_count = request.max_entries as u64;
        Ok(ArchiveSummary::new(request.path.len() as u64, entry_count, false))
    }
}

#[test]
fn artifacts() {
    let server = SandboxServer::start(config(), Shelf).unwrap();
    let mut client = Client::connect(server.addr());
    let error = |text: &str| json!({"success": false, "error": text});
    let denied = || error("Access denied: path outside workspace");
    let text = |content: &str| json!({"success": true, "content": content, "encoding": "text"});
    let listed = |path: &str, size: u64| json!({"success": true, "entries": [{"path": path, "is_dir": true, "size": size, "mtime": 1795330170.547766}], "truncated": true});
    let rows = vec![
        (
            "read",
            json!({"path": "f.txt"}),
            200,
            json!({
                "success": true, "content": "\u{e9} 5000000 ", "encoding": "text", "truncated": true, "bytes": 11, "file_size": 10,
                "path": "f.txt", "mime": "text/plain", "sha256": null, "offset": 0, "file_sha256": null,
            }),
        ),
        (
            "read",
            json!({"path": "f.txt", "max_bytes": "4", "encoding": " TEXT "}),
            200,
            text("\u{e9} 4 "),
        ),
        (
            "read",
            json!({"path": "f.txt", "max_bytes": 0, "encoding": null}),
            200,
            text("\u{e9} 1 "),
        ),
        (
            "read",
            json!({"path": "f.txt", "max_bytes": 9_000_000, "encoding": ""}),
            200,
            text("\u{e9} 5000000 "),
        ),
        ("read", json!({"path": "f.txt", "max_bytes": "x"}), 200, text("\u{e9} 5000000 ")),
        (
            "read",
            json!({"path": "f.txt", "include_sha256": 1, "offset": 7, "include_file_sha256": true}),
            200,
            json!({"sha256": "part", "offset": 7, "file_sha256": "whole"}),
        ),
        (
            "read",
            json!({"path": "f.txt", "include_sha256": "", "offset": -7}),
            200,
            json!({"sha256": null, "offset": 0}),
        ),
        ("read", json!({"path": "bytes"}), 200, text("a\u{fffd}")),
        (
            "read",
            json!({"path": "bytes", "encoding": "Base64"}),
            200,
            json!({"content": "Yf8=", "encoding": "base64", "bytes": 2}),
        ),
        ("read", json!({}), 400, error("Not a file: ")),
        ("read", json!({"path": "d"}), 400, error("Not a file: d")),
        ("read", json!({"path": "nope"}), 404, error("Not found: nope")),
        ("read", json!({"path": "/etc/passwd"}), 403, denied()),
        ("read", json!({"path": 7}), 403, denied()),
        ("read", json!({"path": null, "encoding": "hex"}), 403, denied()),
        ("read", json!({"path": "nope", "encoding": "hex"}), 404, error("Not found: nope")),
        (
            "read",
            json!({"path": "f.txt", "encoding": "HEX"}),
            400,
            error("Unsupported encoding: hex"),
        ),
        ("read", json!({"path": "lost"}), 503, error("the sandbox was lost: why")),
        ("read", json!({"path": "broken"}), 500, error("cannot read it: a broken disk")),
        ("read", json!({"path": "panic"}), 503, json!({"success": false})),
        ("list", json!({}), 200, listed("./false", 5000)),
        ("list", json!({"path": "d", "recursive": 1, "max_entries": 7}), 200, listed("d/true", 7)),
        ("list", json!({"path": "fifo"}), 400, error("Unsupported path type: fifo")),
        ("list", json!({"path": []}), 403, denied()),
        (
            "archive",
            json!({}),
            200,
            json!({
                "success": true, "content": "Lg==", "encoding": "base64", "format": "tar.gz", "bytes": 1, "entry_count": 5000,
            }),
        ),
        (
            "archive",
            json!({"format": " TGZ", "path": "d", "max_entries": 3}),
            200,
            json!({"content": "ZA==", "format": "tar.gz", "entry_count": 3}),
        ),
        ("archive", json!({"format": null}), 200, json!({"success": true})),
        (
            "archive",
            json!({"format": "zip", "path": 7}),
            400,
            error("Unsupported archive format: zip"),
        ),
        ("archive", json!({"path": 7}), 403, denied()),
        (
            "archive",
            json!({"max_bytes": 10}),
            413,
            json!({"success": false, "error": "Archive too large: 265 bytes (max 10)", "bytes": 265}),
        ),
    ];
    for (route, mut request, status, expected) in rows {
        request["slot_id"] = json!("slot_0");
        let path = format!("/artifacts/{route}");
        let answer = client.ask("POST", &path, &[], request.to_string().as_bytes());
        assert_eq!(answer.status, status, "{route} {request}: {}", answer.text());
        assert!(has(&answer.json(), &expected), "{route} {request}: {}", answer.text());
    }
}

#[test]
fn a_backend_without_artifacts_says_so() {
    let server = SandboxServer::start(config(), Echoes(1)).unwrap();
    let mut client = Client::connect(server.addr());
    let answer = client.ask("POST", "/artifacts/list", &[], br#"{"slot_id": "slot_0"}"#);
    let text = r#"{"success": false, "error": "this sandbox backend has no artifacts, or takes no files"}"#;
    assert_eq!((answer.status, answer.text()), (501, text));
}
