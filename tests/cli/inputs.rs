//! What `replay` takes for input, and what it says of what is none.

use std::process::Stdio;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &str) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest)
}

/// What a replay of this content ends as, and the ids that have a result.
fn replay(content: &[u8], flags: &[&str]) -> (Run, Vec<String>) {
    let setup = Setup::new(&[]);
    fs::write(setup.path("in.jsonl"), content).unwrap();
    let run = setup.replay(flags);
    (run, ids(&setup))
}

fn ids(setup: &Setup) -> Vec<String> {
    let results = setup.results();
    let mut ids: Vec<_> =
        results.iter().map(|line| line["trajectory_id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

#[test]
fn input_that_is_packed_is_read_from_a_file_and_from_standard_input() {
    let [a, b] = ["a", "b"].map(|id| trajectory(id, &["true"]) + "\n");
    for packed in [[gzip(&a), gzip(&b)].concat(), [zstd(&a), zstd(&b)].concat()] {
        let (run, found) = replay(&packed, &[]);
        assert_eq!(
            (run.code, &found[..]),
            (Some(0), &["a".to_owned(), "b".to_owned()][..]),
            "{run:?}"
        );

        let setup = Setup::new(&[]);
        let mut command = program();
        command.args(["replay", "-", "--out"]).arg(setup.path("out.jsonl")).stdin(Stdio::piped());
        let mut child = spawn(command);
        child.stdin.take().unwrap().write_all(&packed).unwrap();
        let run = Run::of(child.wait_with_output().unwrap());
        assert_eq!((run.code, ids(&setup)), (Some(0), found), "{run:?}");
    }
}

#[test]
fn packed_input_that_is_cut_off_is_told_and_the_trajectories_before_it_run() {
    // So much that the first lines are unpacked before the cut is found.
    let many: String = (0..3000)
        .map(|n| {
            json!({"id": format!("t{n}"), "calls": [], "x": n * 7919 % 10_007}).to_string() + "\n"
        })
        .collect();
    let first = trajectory("first", &["true"]) + "\n";
    // What a frame of zstd holds comes when it ends, or when it is longer than the frame's window.
    let packed =
        [("gzip", gzip(&(first.clone() + &many))), ("zstd", [zstd(&first), zstd(&many)].concat())];
    for (name, packed) in packed {
        let (run, found) = replay(&packed[..packed.len() - 5], &[]);
        assert_eq!((run.code, found), (Some(4), vec!["first".to_owned()]), "{run:?}");
        let problem = format!("in.jsonl: the {name} data ends in the middle: the file is cut off");
        assert!(run.stderr.contains(&problem), "{run:?}");
    }
}

#[test]
fn an_input_without_a_call_is_an_error_that_says_what_is_missing() {
    for (content, problem) in [
        ("", "in.jsonl: no trajectory is in it: it is empty"),
        ("\n \n", "in.jsonl: no trajectory is in it: it is empty"),
        ("{\"calls\": []}\n{\"messages\": []}\n", "in.jsonl: no call is in its 2 trajectories"),
    ] {
        let (run, found) = replay(content.as_bytes(), &[]);
        assert_eq!((run.code, found.len()), (Some(3), 0), "{run:?}");
        assert!(run.stderr.contains(&format!("{problem}\n")), "{run:?}");
    }
    let directory = directory();
    let run = Run::of(program().arg("replay").arg(directory.path()).output().unwrap());
    assert_eq!(run.code, Some(4));
    assert!(run.stderr.contains("is a directory; name a file of JSON Lines"), "{run:?}");
    let (run, _) = replay(b"\xfd7zXZ\0\0\0", &[]);
    assert_eq!(run.code, Some(4));
    assert!(run.stderr.contains("is packed with xz, which is not read"), "{run:?}");
}

#[test]
fn ids_that_were_taken_are_said_once_with_their_number() {
    let line = |id| trajectory(id, &["true"]) + "\n";
    let text = [line("b"), line("a"), line("a"), line("a")].concat();
    let (run, found) = replay(text.as_bytes(), &[]);
    assert_eq!((run.code, &found[..]), (Some(0), &["a", "a~2", "a~3", "b"].map(str::to_owned)[..]));
    let said: Vec<_> = run.stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
    let expected = "warning: 2 lines have an id that was taken and run under another one: the first \
                    is line 3, where \"a\" runs as \"a~2\"";
    assert_eq!(said, [expected]);
    assert!(run.stdout.contains("trajectories  4; 2 lines with an id that was taken\n"), "{run:?}");
}
