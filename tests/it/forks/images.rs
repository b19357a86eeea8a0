//! The same in machines with the files of an image: all of them are kept.

use super::*;
use crate::images::Image;
use crate::sandbox::is_root;

#[test]
fn all_files_of_an_image_are_kept_forked_and_graded() {
    let image = Image::new();
    let (dir, executor) = start_with(LocalConfig::new(3).with_image(image.name()));
    let change = "rm /app/file; mkdir -p /opt/x; echo base > /opt/x/f; echo t > /tmp/t; \
                  chown 1000:100 /opt/x/f; chmod 4711 /opt/x/f; seq 1 100000";
    let long = executor.execute("from", bash(change));
    let file = long.metadata["output_file"].as_str().unwrap_or_else(|| panic!("{long:?}"));
    let made = snapshot(&executor, "from");
    assert_eq!((made.layers, made.parent), (2, None));
    let seen = "ls /app; cat /opt/x/f /tmp/t; stat -c %a /opt/x/f";
    assert_eq!(run(&executor, "from", seen), "base\nt\n4711");
    // What is kept of its outputs is its own.
    assert_eq!(run(&executor, "from", &format!("wc -l < {file}")), "100000");
    let forks = executor.fork("from", &["a", "b"], &ForkOptions::default()).unwrap();
    assert!(forks.iter().all(|fork| fork.begun.is_ok()), "{forks:?}");
    let whose = if is_root() { "1000" } else { "0" };
    for id in ["a", "b"] {
        assert_eq!(run(&executor, id, seen), "base\nt\n4711");
        assert_eq!(run(&executor, id, "stat -c %u /opt/x/f"), whose);
        run(
            &executor,
            id,
            &format!("echo {id} > /opt/x/f; rm -r /app; mkdir /app; echo n > /app/n"),
        );
        assert_eq!(run(&executor, id, "cat /opt/x/f; ls /app"), format!("{id}\nn"));
    }
    assert_eq!(run(&executor, "from", seen), "base\nt\n4711");

    let spec = GradeSpec::new(
        "cat /opt/x/f f; ls /app; pwd; id -u; rm -r /opt; echo h > $HOME/h; echo v >&6",
    )
    .with_files(vec![SpecFile::text("f", "grader\n")]);
    let graded = grade(&executor, "a", &spec);
    assert_eq!(graded.stdout, "a\ngrader\nn\n/grade\n0\n", "{graded:?}");
    assert_eq!((graded.verdict.as_deref(), graded.exit_code()), (Some("v\n"), Some(0)));
    assert_eq!(run(&executor, "a", "cat /opt/x/f; ls /; ls /run"), {
        let listed = run(&executor, "b", "ls /; ls /run");
        format!("a\n{listed}")
    });
    let as_agent = GradeSpec::new("id -u").with_user("agent".to_owned());
    assert_eq!(grade(&executor, "a", &as_agent).stdout, "1000\n");
    let none = GradeSpec::new("id -u").with_user("nobody-such".to_owned());
    let refused = executor.grade("a", &none).unwrap_err();
    assert!(matches!(refused, SnapshotError::Unsupported(_)), "{refused}");
    // Nothing is left of it.
    for id in ["from", "a", "b"] {
        executor.release(id).unwrap();
    }
    assert_eq!(run(&executor, "from", "cat /app/file; test ! -e /opt"), "of the image");
    executor.release("from").unwrap();
    executor.drop_snapshot(&made.id).unwrap();
    for slot in 0..3 {
        settled(dir.path(), slot, 4);
    }
}
