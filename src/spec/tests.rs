//! What makes sense in a spec, and what is said where it does not.

use super::*;
use proptest::prelude::*;
use serde_json::json;

fn read(json: serde_json::Value) -> Result<TrajectorySpec, String> {
    let spec: TrajectorySpec = serde_json::from_value(json).map_err(|error| error.to_string())?;
    spec.check().map_err(|error| error.to_string())?;
    Ok(spec)
}

#[test]
fn what_makes_no_sense_is_refused_with_what_is_right() {
    let empty = |n: usize| json!({"path": n.to_string(), "content": ""});
    let many: Vec<_> = (0..=MAX_SPEC_FILES).map(empty).collect();
    for (json, words) in [
        (json!({"imgae": "x"}), "unknown field `imgae`, expected one of `image`"),
        (json!({"image": ""}), "image is empty; leave it out"),
        (json!({"image": 7}), "invalid type: integer `7`, expected a string"),
        (json!({"image": "a", "snapshot": "b"}), "give one of them"),
        (json!({"snapshot": "a\nb"}), "control characters"),
        (json!({"user": "a".repeat(256)}), "user has 256 bytes; at most 255"),
        (json!({"workdir": "app"}), "workdir is \"app\"; it must be an absolute path"),
        (json!({"workdir": "/a/../b"}), "without `..`"),
        (json!({"env": {"A-B": "x"}}), "in env: \"A-B\" is no name of a variable"),
        (json!({"env": {"HOME": "/"}}), "HOME cannot be set"),
        (json!({"env": {"A": null}}), "invalid type: null, expected a string"),
        (json!({"env": {"A": "a\0b"}}), "NUL"),
        (json!({"env": {"A": "x".repeat(200_000)}}), "at most 131072"),
        (json!({"limits": {"memory": 1}}), "unknown field `memory`, expected one of `processes`"),
        (json!({"limits": {"processes": 1}}), "processes is 1; it must be at least 8"),
        (json!({"network": "some"}), "unknown variant `some`, expected one of `none`"),
        (json!({"allow_hosts": []}), "allow_hosts is empty"),
        (json!({"allow_hosts": ["http://a"]}), "it is a URL"),
        (json!({"allow_hosts": ["a.b"], "network": "none"}), "only the proxy knows hosts"),
        (json!({"background": "stay"}), "expected `end` or `keep`"),
        (json!({"max_wall_s": 0}), "max_wall_s is 0; it must be above 0"),
        (json!({"max_idle_s": -1}), "a number of seconds from 0"),
        (json!({"max_idle_s": "1"}), "a number of seconds from 0"),
        (json!({"files": [{"path": "a"}]}), "one of `content` and `base64`"),
        (json!({"files": [{"path": "a", "base64": "!"}]}), "wrong base64"),
        (json!({"files": [{"path": "../a", "content": ""}]}), "without `..`"),
        (json!({"files": [{"path": "a/", "content": ""}]}), "no path of a file"),
        (json!({"files": [{"path": "a", "content": "", "mode": "9"}]}), "it must be octal"),
        (json!({"files": [{"path": "a", "content": "", "mode": "4755"}]}), "at most 0o777"),
        (json!({"files": [{"path": "a", "content": "", "mode": 493}]}), "expected a string"),
        (json!({"files": many}), "there are 1001 files; at most 1000"),
        (
            json!({"files": [{"path": "a", "content": "x".repeat(MAX_SPEC_FILES_BYTES + 1)}]}),
            "at most 8388608",
        ),
        (json!({"files": [{"path": "a", "text": "x"}]}), "unknown field `text`"),
    ] {
        let error = read(json.clone()).expect_err(&json.to_string());
        assert!(error.contains(words), "{json}: {error}");
    }
}

#[test]
fn a_spec_says_what_it_asks_of_a_sandbox() {
    let nothing = read(json!({"max_wall_s": 1.5, "max_idle_s": 60})).unwrap();
    assert_eq!(nothing.asks_for().count(), 0);
    assert_eq!(nothing.max_wall, Some(Duration::from_millis(1500)));
    let spec = read(json!({
        "image": "debian", "user": "1000:1000", "workdir": "/app", "env": {"A": "b"},
        "limits": {"processes": 99}, "network": "proxy", "allow_hosts": ["*.example"],
        "background": "keep", "files": [{"path": "a", "content": "b"}],
    }))
    .unwrap();
    let all_but_snapshot = SpecField::ALL.into_iter().filter(|field| *field != SpecField::Snapshot);
    assert!(spec.asks_for().eq(all_but_snapshot));
    let snapshot = read(json!({"snapshot": "s-1"})).unwrap();
    assert!(snapshot.asks_for().eq([SpecField::Snapshot]));
}

#[test]
fn a_spec_is_read_as_it_is_written_and_what_is_default_is_left_out() {
    assert_eq!(serde_json::to_string(&TrajectorySpec::default()).unwrap(), "{}");
    let json = json!({
        "image": "a", "limits": {"cpu": 1.5}, "background": "keep", "max_wall_s": 10.0,
        "files": [
            {"path": "/a", "content": "é", "mode": "0755"},
            {"path": "b", "base64": "AP8="},
        ],
    });
    let spec: TrajectorySpec = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(serde_json::to_value(&spec).unwrap(), json);
    assert_eq!(spec.files[1].content.as_bytes(), [0, 255]);
    // What an image's files are is not for a log.
    assert!(format!("{spec:?}").contains("content: 2 bytes, mode: 0o755"));
}

proptest! {
    #[test]
    fn any_files_come_back_as_they_were(
        files in proptest::collection::vec(
            ("[a-z/]{1,9}", proptest::collection::vec(any::<u8>(), 0..50), 0u32..=0o777), 0..5,
        )
    ) {
        let files: Vec<_> = files
            .into_iter()
            .map(|(path, bytes, mode)| match String::from_utf8(bytes) {
                Ok(text) => SpecFile::text(path, text).with_mode(mode),
                Err(error) => SpecFile::bytes(path, error.into_bytes()).with_mode(mode),
            })
            .collect();
        let spec = TrajectorySpec::default().with_files(files);
        let json = serde_json::to_string(&spec).unwrap();
        prop_assert_eq!(serde_json::from_str::<TrajectorySpec>(&json).unwrap(), spec);
    }
}
