//! A thousand machines of twenty images at once: how long they take, and what they take. For
//! measuring, on a machine that does nothing else:
//!
//! ```sh
//! ulimit -n 65536     # 44 descriptors a slot
//! cargo test --test it --release -- --ignored --nocapture a_thousand_machines_of_twenty_images
//! ```
//!
//! The figures of one machine are in `docs/images.md`.

use std::fs;
use std::time::Instant;

use tool_executor::backend::local::LocalBackend;
use tool_executor::config::LocalConfig;
use tool_executor::{ToolExecutor, TrajectorySpec};

use crate::caller::directory;
use crate::fakes::bash;
use crate::images::Image;

/// How many machines, where not a thousand: each takes up to 44 descriptors of this process.
const VARIABLE: &str = "TOOL_EXECUTOR_TEST_MACHINES";
const IMAGES: usize = 20;
/// How many trajectories begin at a time.
const AT_ONCE: usize = 8;

/// What this process and its children have in memory, each page shared out among those who have
/// it, in KiB; and how many children there are.
fn memory() -> (u64, u64, usize) {
    let of = |process: &str| {
        let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0)
    };
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let children: Vec<_> = tasks
        .flat_map(|task| {
            let list = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            list.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    (of("self"), children.iter().map(|child| of(child)).sum(), children.len())
}

/// What the kernel has in use beside pages of processes and files, in KiB.
fn kernel_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0)
    };
    ["Slab:", "KernelStack:", "PageTables:", "Percpu:"].into_iter().map(of).sum()
}

#[test]
#[ignore = "takes long; for measuring"]
#[expect(clippy::print_stdout, reason = "what it measures")]
fn a_thousand_machines_of_twenty_images() {
    let machines = std::env::var(VARIABLE).map_or(1000, |number| number.parse().unwrap());
    let images: Vec<_> = (0..IMAGES).map(|_| Image::new()).collect();
    let (data, before) = (directory(), kernel_memory());
    let started = Instant::now();
    let backend =
        LocalBackend::start(LocalConfig::new(machines).with_data_dir(data.path())).unwrap();
    let executor = ToolExecutor::builder().backend(backend).start().unwrap();
    println!("{machines} slots: {:.0?}", started.elapsed());
    let (empty, ..) = memory();
    let started = Instant::now();
    std::thread::scope(|scope| {
        for first in 0..AT_ONCE {
            let (executor, images) = (&executor, &images);
            scope.spawn(move || {
                for number in (first..machines).step_by(AT_ONCE) {
                    let id = format!("t{number}");
                    let image = images[number % IMAGES].name();
                    executor.begin(&id, TrajectorySpec::default().with_image(image)).unwrap();
                    let result = executor.execute(&id, bash("true"));
                    assert!(result.success, "{result:?}");
                }
            });
        }
    });
    let took = started.elapsed();
    println!("begun, and one command each: {took:.1?}, {:.2?} each", took / machines as u32);
    let (own, of_children, children) = memory();
    let kernel = kernel_memory().saturating_sub(before);
    println!(
        "memory: this process {} KiB more, {children} first processes {of_children} KiB (Pss), the \
         kernel {kernel} KiB more: {} KiB each",
        own.saturating_sub(empty),
        (own.saturating_sub(empty) + of_children + kernel) / machines as u64
    );
    let started = Instant::now();
    assert!(executor.close().all_threads_ended);
    println!("closed: {:.1?}", started.elapsed());
}
