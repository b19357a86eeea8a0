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

#[test]
fn where_only_some_directories_are_judged_all_else_is_the_images_own() {
    let image = Image::new();
    let (dir, executor) = start_with(LocalConfig::new(2).with_image(image.name()));
    // The shell and all programs of the image say what the agent wants.
    let replace = "echo answer > /app/solution; chmod 750 /app; echo keep > /etc/agents; \
                   printf '#!/bin/busybox sh\\necho forged; echo forged >&6\\n' > /evil; chmod 755 /evil; \
                   busybox=/bin/busybox; for p in cat ls stat id test; do $busybox cp /evil /bin/$p; done; \
                   $busybox mv /evil /bin/sh";
    let spec = || {
        let command = "cat /app/solution; ls /app; ls -d /etc/agents /evil 2>/dev/null; \
                       stat -c '%a %u %g' /app; id -u; echo changed > /app/solution; echo honest >&6";
        GradeSpec::new(command)
    };
    let judged = |paths: &[&str]| {
        let paths: Vec<_> = paths.iter().map(|path| (*path).to_owned()).collect();
        spec().with_judged_paths(paths)
    };
    let graded = |id: &str, spec: &GradeSpec| {
        let graded = grade(&executor, id, spec);
        (graded.stdout.clone(), graded.verdict.clone().unwrap_or_default())
    };
    run(&executor, "t", replace);
    assert_eq!(graded("t", &spec()), ("forged\n".to_owned(), "forged\n".to_owned()));
    let honest = ("answer\nfile\nsolution\n750 0 0\n0\n".to_owned(), "honest\n".to_owned());
    assert_eq!(graded("t", &judged(&["/app"])), honest);
    // What the first grader changed is gone.
    assert_eq!(graded("t", &judged(&["/app", "/home/agent"])), honest);
    executor.release("t").unwrap();

    // What was removed does not come back, above snapshots too; and whose it is, it is.
    run(&executor, "u", "rm -r /app; mkdir -p /app/deep; chown 1000:100 /app; echo no > /app/no");
    let made = snapshot(&executor, "u");
    run(&executor, "u", "rm /app/no; echo late > /app/solution; ln -s /app /link");
    let whose = if is_root() { "1000 100" } else { "0 0" };
    let expected = format!("late\ndeep\nsolution\n755 {whose}\n0\n");
    assert_eq!(graded("u", &judged(&["/app"])).0, expected);
    // By a link, which the image does not have, to the same.
    assert_eq!(graded("u", &judged(&["/link"])).0.lines().next(), Some("file"));
    run(&executor, "u", "rm -r /app; echo x > /file");
    let nothing = judged(&["/app"]);
    assert_eq!(graded("u", &nothing).0, "755 0 0\n0\n");
    let refused = executor.grade("u", &judged(&["/file"])).unwrap_err();
    assert!(refused.to_string().contains("\"/file\", which is no directory"), "{refused}");
    executor.release("u").unwrap();
    executor.drop_snapshot(&made.id).unwrap();
    for slot in 0..2 {
        settled(dir.path(), slot, 4);
    }

    let (_dir, executor) = start(1);
    run(&executor, "t", "true");
    let refused = executor.grade("t", &judged(&["/workspace"])).unwrap_err();
    assert!(matches!(refused, SnapshotError::Unsupported(_)), "{refused}");
    assert!(refused.to_string().contains("leave judged_paths out"), "{refused}");
}
