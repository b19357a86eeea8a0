//! Workspaces that change while they are read.

use super::*;

/// Ends the other thread also if this one panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` while another thread swaps the entries `a` and `b` of the workspace.
fn while_swapping(fixture: &Fixture, times: usize, mut work: impl FnMut()) {
    let over = AtomicBool::new(false);
    let (a, b) = (fixture.at("a"), fixture.at("b"));
    let swapped = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swapped = 0_u64;
            while !over.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE).unwrap();
                swapped += 1;
            }
            swapped
        });
        {
            let _end = SetOnDrop(&over);
            (0..times).for_each(|_| work());
        }
        swapper.join().unwrap()
    });
    assert!(swapped > 1_000, "only {swapped} swaps: nothing was raced");
}

#[test]
fn a_directory_swapped_for_a_symlink_never_leads_out() {
    let fixture = fixture();
    let outside = fixture.outer.path().join("outside");
    fs::create_dir_all(outside.join("d/secret")).unwrap();
    fs::write(outside.join("d/f"), "the secret").unwrap();
    fixture.write("a/d/f", "inside");
    symlink(&outside, fixture.at("b")).unwrap();
    let (mut inside, mut refused) = (0, 0);
    while_swapping(&fixture, 3_000, || {
        match fixture.read("a/d/f") {
            Ok(artifact) => {
                assert_eq!((artifact.content.as_slice(), artifact.file_size), (&b"inside"[..], 6));
                inside += 1;
            }
            Err(_) => refused += 1,
        }
        for path in [".", "a", "a/d"] {
            let path = path.to_owned();
            let request = ListArtifacts { path, recursive: true, max_entries: 100 };
            let list = list(fixture.workspace(), &request).unwrap_or_default();
            for entry in list.entries {
                assert!(!entry.path.contains("secret") && entry.size != 10, "{entry:?}");
            }
        }
        for path in [".", "a", "a/d"] {
            let Ok((bytes, _)) = fixture.try_archive(path, 100_000, 100) else { continue };
            for member in members(&bytes) {
                assert!(!member.name.contains("secret"), "{}", member.name);
                assert!(member.content.is_empty() || member.content == b"inside");
            }
        }
    });
    assert!(inside > 0 && refused > 0, "{inside} read, {refused} refused");
}

#[test]
fn a_file_swapped_for_a_symlink_or_a_fifo_never_leads_out_and_never_blocks() {
    for fifo in [false, true] {
        let fixture = fixture();
        let secret = fixture.outer.path().join("secret");
        fs::write(&secret, "the secret").unwrap();
        fixture.write("a", "inside");
        if fifo {
            fixture.fifo("b");
            assert!(fs::metadata(fixture.at("b")).unwrap().file_type().is_fifo());
        } else {
            symlink(&secret, fixture.at("b")).unwrap();
        }
        while_swapping(&fixture, 3_000, || {
            if let Ok(artifact) = fixture.read("a") {
                assert_eq!(artifact.content, b"inside");
            }
            let list = fixture.try_list(".").unwrap();
            assert!(list.entries.iter().all(|entry| entry.size != 10));
            for member in members(&fixture.archive(".", 10).0) {
                assert!(member.content.is_empty() || member.content == b"inside");
            }
        });
    }
}

#[test]
fn a_file_that_grows_or_shrinks_meanwhile_leaves_a_sound_archive() {
    let fixture = fixture();
    fixture.write("f", vec![1; 300_000]);
    fixture.write("g", "after");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = fs::File::options().write(true).open(fixture.at("f")).unwrap();
            while !over.load(Ordering::Relaxed) {
                file.set_len(1_000).unwrap();
                file.set_len(300_000).unwrap();
            }
        });
        let _end = SetOnDrop(&over);
        for _ in 0..300 {
            let members = members(&fixture.archive(".", 10).0);
            assert!([1_000, 300_000].contains(&members[0].content.len()));
            assert_eq!(members[1].content, b"after");
        }
    });
}
