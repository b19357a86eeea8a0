//! The watch without its threads.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::sandbox::workspace::DataDir;

#[test]
fn it_is_looked_the_more_often_the_nearer_the_limit_is() {
    let millis = |pace: &Pace, left| pace.pause(left).as_millis();
    assert_eq!(millis(&MEMORY_PACE, 4 << 30), 125);
    assert_eq!(millis(&MEMORY_PACE, 128 << 20), 25);
    assert_eq!(millis(&MEMORY_PACE, 0), 25);
    assert_eq!(millis(&MEMORY_PACE, u64::MAX), 250);
    assert_eq!(millis(&DISK_PACE, 8 << 30), 500);
    assert_eq!(millis(&DISK_PACE, 32 << 20), 100);
    assert_eq!(millis(&DISK_PACE, u64::MAX), 1000);
}

#[test]
fn a_command_that_cleans_up_is_left_alone() {
    let bytes = |bytes| Usage { bytes, files: 1 };
    let files = |files| Usage { bytes: 1, files };
    for usage in [&bytes as &dyn Fn(u64) -> Usage, &files] {
        let limit = Usage { bytes: 100, files: 100 };
        let of = |size, by_itself| Some(Before { size: usage(size), by_itself });
        assert!(!is_exceeded(limit, None, usage(100)));
        assert!(is_exceeded(limit, None, usage(101)));
        for by_itself in [true, false] {
            assert!(is_exceeded(limit, of(50, by_itself), usage(101)));
            assert_eq!(is_exceeded(limit, of(150, by_itself), usage(151)), by_itself);
            assert!(!is_exceeded(limit, of(150, by_itself), usage(149)));
            assert!(!is_exceeded(limit, of(150, by_itself), usage(150)));
        }
    }
}

#[test]
fn a_command_in_a_full_slot_answers_only_for_what_it_has_written_itself() {
    const LIMIT: u64 = 1 << 20;
    let base = tempfile::tempdir().unwrap();
    let data = DataDir::create(Some(base.path()), 1, None).unwrap();
    let workspace = data.workspaces()[0].clone();
    let shared = Shared::default();
    let limit = Usage { bytes: LIMIT, files: u64::MAX };
    let watched = Watched { workspace: Some(limit), ..Watched::default() };
    let mut thread = Thread { role: Role::Disk, known: HashMap::new(), disks: HashMap::new() };
    let write = |name: &str, bytes: u64| {
        std::fs::write(workspace.path().join(name), vec![1; bytes as usize]).unwrap();
    };
    let counted = |thread: &Thread| thread.disks.get(workspace.path()).map(|disk| disk.counted);
    // Looks until it has counted once more; tells whether the command of that number must end.
    let mut count = |number: u64, began: Instant| {
        let told = Arc::new(AtomicBool::new(false));
        let alarm: Alarm = Arc::new({
            let told = told.clone();
            move |_| told.store(true, Ordering::Relaxed)
        });
        // No process has this number.
        let init = i32::MAX;
        let busy = Some((began, alarm));
        let entry = Entry { init, workspace: workspace.clone(), watched, kills: None, busy };
        let (before, patience) = (counted(&thread), Instant::now() + Duration::from_secs(60));
        while counted(&thread) == before {
            assert!(Instant::now() < patience, "it never counts again");
            let entries = vec![(number, entry.clone())];
            thread.look(&shared, Due { entries, dirty: Vec::new(), smallest: LIMIT });
        }
        told.load(Ordering::Relaxed)
    };

    let first = Instant::now();
    write("big", 2 * LIMIT);
    assert!(count(1, first), "it has filled the slot");
    // It goes on until it is killed.
    write("more", 100_000);
    let second = Instant::now();
    assert!(!count(2, second), "it has written nothing");
    assert!(!count(2, second));
    write("its own", 100_000);
    assert!(count(2, second));
}

#[test]
fn a_workspace_is_counted_when_the_file_system_loses_bytes_or_time_has_passed() {
    let bytes = |bytes| Usage { bytes, files: 0 };
    let left = |bytes| Usage { bytes, files: 50 };
    let limit = Usage { bytes: 100, files: 40 };
    let disk = |age: Duration, cost| Disk {
        size: bytes(60),
        counted: Instant::now().checked_sub(age).unwrap(),
        cost,
        free: Usage { bytes: 1000, files: 50 },
        free_at_first: Usage { bytes: 1000, files: 50 },
    };
    let just = Duration::ZERO;
    assert!(!is_due(&disk(just, just), limit, left(990), 0), "less than half of the rest is lost");
    assert!(is_due(&disk(just, just), limit, left(980), 0));
    assert!(is_due(&disk(just, just), limit, left(999), 39), "removed files take from the rest");
    assert!(!is_due(&disk(just, just), limit, left(2000), 0));
    let few = Usage { bytes: 1000, files: 29 };
    assert!(is_due(&disk(just, just), limit, few, 0), "many files were made");
    let second = Duration::from_secs(1);
    assert!(!is_due(&disk(second, second), limit, left(0), 0), "it would do nothing else");
    assert!(is_due(&disk(2 * second, just), limit, left(1000), 0));
    assert!(!is_due(&disk(2 * second, second / 4), limit, left(1000), 0));
}
