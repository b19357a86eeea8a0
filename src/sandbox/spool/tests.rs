//! Complete outputs: of real commands, of a model that wants to mislead the file, and with threads
//! that a test holds up.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;

use rustix::event::epoll;
use rustix::fs::{CWD, FileType, Mode, RenameFlags};

use super::*;
use crate::artifact::ReadArtifact;
use crate::sandbox::artifacts;
use crate::sandbox::isolation::Isolation;
use crate::sandbox::limits::Limits;
use crate::sandbox::output::Captured;
use crate::sandbox::stream::{READ_BUFFER, Source, Stream, Watch};
use crate::sandbox::supervisor::{CommandSpec, End, Finished, Supervisor};
use crate::sandbox::testing::{Held, hold, small_file_system, with_small_file_system};
use crate::sandbox::user::CommandUser;
use crate::sandbox::workspace::DataDir;

/// Long enough for anything that is expected to happen at all.
const LONG: Duration = Duration::from_secs(60);
/// A workspace beside a directory with a secret.
struct Fixture {
    data: DataDir,
    outer: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let outer = tempfile::tempdir().unwrap();
    fs::set_permissions(outer.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let user = CommandUser::detect();
    let data = DataDir::create(Some(&outer.path().join("base")), 1, user).unwrap();
    fs::create_dir(outer.path().join("outside")).unwrap();
    // Whoever could be led there could also write there.
    fs::set_permissions(outer.path().join("outside"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(outer.path().join("outside/1-stdout.txt"), "the secret").unwrap();
    Fixture { data, outer }
}

impl Fixture {
    fn workspace(&self) -> &Arc<Workspace> {
        &self.data.workspaces()[0]
    }

    fn at(&self, path: &str) -> PathBuf {
        self.workspace().at(path)
    }

    fn outside(&self) -> PathBuf {
        self.outer.path().join("outside")
    }

    /// Nothing outside was made, changed or removed.
    #[track_caller]
    fn assert_outside_untouched(&self) {
        let names: Vec<_> = fs::read_dir(self.outside()).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        let secret = fs::read_to_string(self.outside().join("1-stdout.txt")).unwrap();
        assert_eq!(secret, "the secret");
    }

    fn spec(&self, command: &str) -> CommandSpec {
        CommandSpec {
            workspace: self.workspace().clone(),
            command: command.to_owned(),
            network: true,
            timeout: LONG,
            output_limit_chars: 1_000,
            output_file_bytes: 16 << 20,
            stdin: String::new(),
            output_order: Default::default(),
            verdict: None,
            keeps_background: false,
        }
    }
}

fn bare() -> Supervisor {
    let isolation = Isolation::none("a test");
    Supervisor::start(
        isolation,
        CommandUser::detect(),
        Arc::new(Limits::none()),
        Spool::start().unwrap(),
    )
    .unwrap()
}

fn sandboxed(fixture: &Fixture) -> Supervisor {
    let user = CommandUser::detect();
    let isolation = Isolation::probe(fixture.workspace());
    assert!(isolation.is_sandboxed(), "{isolation:?}");
    Supervisor::start(isolation, user, Arc::new(Limits::none()), Spool::start().unwrap()).unwrap()
}

fn run(supervisor: &Supervisor, spec: CommandSpec) -> Finished {
    let (sender, receiver) = channel();
    supervisor.run(spec, Box::new(move |finished| sender.send(finished).unwrap()));
    receiver.recv_timeout(LONG).expect("an answer")
}

#[track_caller]
fn kept(captured: &Captured) -> Kept {
    assert!(captured.omitted_bytes > 0);
    captured.kept.clone().expect("something is said of the file")
}

/// What `seq 1 <last>` prints.
fn sequence(last: usize) -> String {
    (1..=last).map(|n| format!("{n}\n")).collect()
}

#[test]
fn a_long_output_is_in_a_file_byte_by_byte_and_each_stream_has_its_own() {
    let fixture = fixture();
    for (supervisor, number, files) in [(bare(), 1, 2), (sandboxed(&fixture), 3, 5)] {
        // As the model's next command finds it, and its file tools.
        let home = run(&supervisor, fixture.spec("echo $HOME")).stdout.text;
        let home = home.trim_end();
        let command = "seq 1 300000 & seq 1 200000 >&2; wait";
        let finished = run(&supervisor, fixture.spec(command));
        assert_eq!(finished.end, End::Exited(0));
        for (captured, name, last) in
            [(&finished.stdout, "stdout", 300_000), (&finished.stderr, "stderr", 200_000)]
        {
            let path = format!("{home}/.tool-output/{number}-{name}.txt");
            let expected = sequence(last);
            let bytes = expected.len() as u64;
            let whole = Kept { path: Some(path.clone()), bytes, complete: true, error: None };
            assert_eq!(kept(captured), whole);
            assert_eq!(captured.bytes, bytes);
            assert!(captured.text.contains("... (output truncated)"));
            assert!(fs::read_to_string(fixture.at(&path)).unwrap() == expected);
            let request = ReadArtifact { offset: bytes - 7, ..ReadArtifact::new(path.clone()) };
            let artifact = artifacts::read(fixture.workspace(), &request).unwrap();
            assert_eq!(artifact.content, format!("{last}\n").as_bytes());
            assert_eq!((artifact.file_size, artifact.mime.as_str()), (bytes, "text/plain"));
            let owner = CommandUser::detect().map_or(rustix::process::geteuid(), CommandUser::uid);
            for path in [path.as_str(), "~/.tool-output"] {
                assert_eq!(fs::metadata(fixture.at(path)).unwrap().uid(), owner.as_raw());
            }
        }
        // The model's next command has it, and its own output needs no file.
        let look =
            format!("tail -n1 ~/.tool-output/{number}-stdout.txt; ls ~/.tool-output | wc -l");
        let next = run(&supervisor, fixture.spec(&look));
        assert_eq!(next.stdout.text, format!("300000\n{files}\n"));
        assert_eq!((next.stdout.kept, next.stderr.kept), (None, None));
        // A call counts, not a stream; here a call without one counts not at all.
        let only_stderr = run(&supervisor, fixture.spec("seq 1 1000 >&2"));
        assert_eq!(only_stderr.stdout.kept, None);
        let path = kept(&only_stderr.stderr).path.unwrap();
        assert_eq!(path, format!("{home}/.tool-output/{}-stderr.txt", number + 1));
    }
}

#[test]
fn an_output_that_is_shown_as_a_whole_leaves_no_trace() {
    let fixture = fixture();
    let supervisor = bare();
    let finished = run(&supervisor, fixture.spec("printf %1000s x; printf %1000s y >&2"));
    assert_eq!((finished.stdout.omitted_bytes, finished.stdout.kept), (0, None));
    assert!(!fixture.at("~/.tool-output").exists());
    // One code point more, in far fewer bytes than the supervisor would have to forget.
    let finished = run(&supervisor, fixture.spec("printf %1001s x"));
    let path = kept(&finished.stdout).path.unwrap();
    assert_eq!(fs::read(fixture.at(&path)).unwrap(), format!("{:>1001}", "x").as_bytes());
    // Many bytes, but not too many code points.
    let euros = "for i in {1..1000}; do printf €; done";
    assert_eq!(run(&supervisor, fixture.spec(euros)).stdout.kept, None);
    // Bytes of any kind.
    let noise = r"for i in {1..400}; do printf '\xff\xe2\x82\0€'; done";
    let finished = run(&supervisor, fixture.spec(noise));
    let path = kept(&finished.stdout).path.unwrap();
    let expected = b"\xff\xe2\x82\0\xe2\x82\xac".repeat(400);
    assert!(fs::read(fixture.at(&path)).unwrap() == expected);
}

#[test]
fn without_a_limit_of_bytes_there_are_no_files() {
    let fixture = fixture();
    let off = CommandSpec { output_file_bytes: 0, ..fixture.spec("seq 1 100000") };
    let finished = run(&bare(), off);
    assert!(finished.stdout.omitted_bytes > 0);
    assert_eq!(finished.stdout.kept, None);
    assert!(!fixture.at("~/.tool-output").exists());
}

#[test]
fn beyond_the_limit_the_files_of_a_call_are_beginnings() {
    let fixture = fixture();
    let supervisor = bare();
    for limit in [1, 3_999, 4_000, 4_001, 500_000] {
        let flood = "seq 1 300000; seq 1 300000 >&2";
        let spec = CommandSpec { output_file_bytes: limit, ..fixture.spec(flood) };
        let finished = run(&supervisor, spec);
        let stdout = kept(&finished.stdout);
        assert_eq!((stdout.bytes, stdout.complete, &stdout.error), (limit, false, &None));
        let content = fs::read_to_string(fixture.at(&stdout.path.unwrap())).unwrap();
        assert!(content == sequence(300_000)[..limit as usize], "{limit}");
        // The limit is the call's, and all of it is used up.
        let nothing = Kept { path: None, bytes: 0, complete: false, error: None };
        assert_eq!(kept(&finished.stderr), nothing);
        assert_eq!(finished.stderr.bytes, finished.stdout.bytes);
    }
    let exact = sequence(100_000).len() as u64;
    let spec = CommandSpec { output_file_bytes: exact, ..fixture.spec("seq 1 100000") };
    assert!(kept(&run(&supervisor, spec).stdout).complete, "an exact fit");
}

#[test]
fn a_flood_that_is_killed_is_kept_up_to_its_end() {
    let fixture = fixture();
    let supervisor = sandboxed(&fixture);
    let command = "yes | head -c 3000000; yes >&2 & exec sleep 1000";
    let spec = CommandSpec { output_file_bytes: 4 << 30, ..fixture.spec(command) };
    let (sender, receiver) = channel();
    let id = supervisor.run(spec, Box::new(move |finished| sender.send(finished).unwrap()));
    let give_up = Instant::now() + LONG;
    let flooding = fixture.at("~/.tool-output/1-stderr.txt");
    while !flooding.metadata().is_ok_and(|metadata| metadata.len() > 1_000_000) {
        assert!(Instant::now() < give_up);
        std::thread::sleep(Duration::from_millis(1));
    }
    supervisor.cancel(id);
    let finished = receiver.recv_timeout(LONG).unwrap();
    assert_eq!(finished.end, End::Cancelled);
    assert_eq!(finished.stdout.bytes, 3_000_000);
    for captured in [&finished.stdout, &finished.stderr] {
        let kept = kept(captured);
        assert!(kept.complete && kept.bytes == captured.bytes, "{kept:?}");
        let content = fs::read(fixture.at(&kept.path.unwrap())).unwrap();
        assert_eq!(content.len() as u64, captured.bytes);
        assert!(content.chunks(2).all(|line| line == b"y\n" || line == b"y"));
    }
}

#[test]
fn what_the_model_put_in_the_place_of_the_directory_gets_no_file() {
    let fixture = fixture();
    let outside = fixture.outside();
    let not_a_directory = ".tool-output: Not a directory";
    let symlink_to_outside = format!("ln -s '{}' ~/.tool-output", outside.display());
    for (prepare, error) in [
        (symlink_to_outside.as_str(), not_a_directory),
        ("ln -s . ~/.tool-output", not_a_directory),
        ("ln -s nowhere ~/.tool-output", not_a_directory),
        ("echo mine > ~/.tool-output", not_a_directory),
        ("mkfifo ~/.tool-output", not_a_directory),
        ("mkdir ~/.tool-output; chmod 555 ~/.tool-output", ".tool-output: Permission denied"),
        ("chmod 555 ~", ".tool-output: Permission denied"),
        ("chmod 0 ~", ".tool-output: Permission denied"),
    ] {
        if error.ends_with("denied") && CommandUser::detect().is_none() && is_root() {
            continue;
        }
        let command = format!("{prepare}; seq 1 200000; seq 1 1000 >&2");
        let finished = run(&bare(), fixture.spec(&command));
        assert_eq!(finished.end, End::Exited(0), "the call does not mind: {prepare}");
        for captured in [&finished.stdout, &finished.stderr] {
            let kept = kept(captured);
            assert_eq!((kept.path, kept.bytes, kept.complete), (None, 0, false), "{prepare}");
            assert_eq!(kept.error.as_deref(), Some(error), "{prepare}");
        }
        fixture.assert_outside_untouched();
        fixture.workspace().clear().unwrap();
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn names_that_the_model_took_are_left_alone() {
    let fixture = fixture();
    let supervisor = bare();
    let take = format!(
        "mkdir ~/.tool-output; cd ~/.tool-output; ln -s '{}/1-stdout.txt' 1-stdout.txt; mkfifo 2-stdout.txt; \
         echo mine > 3-stdout.txt; mkdir 4-stdout.txt; cd; seq 1 200000",
        fixture.outside().display()
    );
    let finished = run(&supervisor, fixture.spec(&take));
    assert_eq!(
        kept(&finished.stdout).path.as_deref(),
        Some(fixture.at("~/.tool-output/5-stdout.txt").to_str().unwrap())
    );
    assert_eq!(fs::read(fixture.at("~/.tool-output/3-stdout.txt")).unwrap(), b"mine\n");
    fixture.assert_outside_untouched();
    // All names that can be guessed.
    let take = "cd ~/.tool-output; touch {1..1000}-stdout.txt; cd; seq 1 200000";
    let kept = kept(&run(&supervisor, fixture.spec(take)).stdout);
    let path = kept.path.unwrap();
    assert!(kept.complete && path.len() > 40, "{path}");
    assert!(fs::read_to_string(fixture.at(&path)).unwrap() == sequence(200_000));
}

#[test]
fn a_file_that_was_taken_away_meanwhile_is_not_promised() {
    let fixture = fixture();
    let supervisor = bare();
    let wait = "until [ -e ~/.tool-output/*-stdout.txt ]; do :; done";
    for take in ["rm -r ~/.tool-output", "mv ~/.tool-output ~/x", "mv ~/.tool-output/* x"] {
        let command = format!("seq 1 200000; {wait}; {take}; seq 1 200000");
        let kept = kept(&run(&supervisor, fixture.spec(&command)).stdout);
        assert_eq!((kept.path, kept.complete), (None, false), "{take}");
        assert_eq!(kept.error.as_deref(), Some("the file was moved or removed"));
        fixture.workspace().clear().unwrap();
    }
    let lead =
        format!("seq 1 200000; {wait}; mv ~/.tool-output ~/x; ln -s x ~/.tool-output; seq 1 9");
    let kept = kept(&run(&supervisor, fixture.spec(&lead)).stdout);
    assert_eq!(kept.path, None, "a symlink is no place");
}

#[test]
fn a_directory_swapped_for_a_symlink_never_leads_out() {
    let fixture = fixture();
    let supervisor = bare();
    let (there, link) = (fixture.at("~/.tool-output"), fixture.at("link"));
    symlink(fixture.outside(), &link).unwrap();
    let over = AtomicBool::new(false);
    let (mut made, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0;
            while !over.load(Ordering::Relaxed) {
                let swap = RenameFlags::EXCHANGE;
                swaps +=
                    u32::from(rustix::fs::renameat_with(CWD, &there, CWD, &link, swap).is_ok());
            }
            swaps
        });
        for _ in 0..300 {
            let finished = run(&supervisor, fixture.spec("printf %5000s"));
            match kept(&finished.stdout).path {
                Some(_) => made += 1,
                None => refused += 1,
            }
        }
        over.store(true, Ordering::Relaxed);
        assert!(swapper.join().unwrap() > 1_000);
    });
    assert!(made > 0 && refused > 0, "{made} made, {refused} refused");
    fixture.assert_outside_untouched();
}

/// A stream without a supervisor, and threads that a test can hold up.
struct Loop {
    epoll: OwnedFd,
    stream: Option<Stream>,
    keep: Option<Keep>,
    buffer: Vec<u8>,
}

impl Loop {
    fn new(workspace: &Arc<Workspace>, limit: u64) -> (Self, fs::File) {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let (stream, writer) = Stream::new(Output::Stdout, 1_000).unwrap();
        let keep = Some(Keep::new(Spool::start().unwrap(), workspace.clone(), limit, true));
        let this = Self { epoll, stream: Some(stream), keep, buffer: vec![0; READ_BUFFER] };
        let watch = Watch { epoll: &this.epoll, id: 1 };
        let pipe = this.stream.as_ref().and_then(|stream| stream.pipe.as_ref()).unwrap();
        watch.add(pipe.as_fd(), Source::Stdout).unwrap();
        (this, writer.into())
    }

    fn hold(&self) -> Held {
        hold(&self.keep.as_ref().unwrap().spool)
    }

    /// Deals with events until there are none for `quiet`, or `done` says so.
    fn turn(&mut self, quiet: Duration, mut done: impl FnMut(&Stream) -> bool) {
        let (watch, stream) = (Watch { epoll: &self.epoll, id: 1 }, self.stream.as_mut().unwrap());
        let keep = self.keep.as_mut().unwrap();
        while !done(stream) {
            let mut events = Vec::with_capacity(8);
            let timeout = quiet.try_into().unwrap();
            let space = rustix::buffer::spare_capacity(&mut events);
            epoll::wait(&self.epoll, space, Some(&timeout)).unwrap();
            if events.is_empty() {
                return;
            }
            for event in events.drain(..) {
                match Watch::decode(event.data.u64()) {
                    Some((1, Source::Stdout)) => stream.read(&watch, &mut self.buffer, Some(keep)),
                    Some((1, Source::Written)) => {
                        keep.heard();
                        stream.resume(&watch);
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn settle(&mut self) -> bool {
        let watch = Watch { epoll: &self.epoll, id: 1 };
        self.stream.as_mut().unwrap().settle(&watch, &mut self.buffer, self.keep.as_mut())
    }

    /// Until all is written.
    fn settle_all(&mut self) {
        let give_up = Instant::now() + LONG;
        while !self.settle() {
            assert!(Instant::now() < give_up);
            let mut events = Vec::with_capacity(8);
            let timeout = LONG.try_into().unwrap();
            let space = rustix::buffer::spare_capacity(&mut events);
            epoll::wait(&self.epoll, space, Some(&timeout)).unwrap();
            self.keep.as_ref().unwrap().heard();
        }
    }

    fn finish(&mut self) -> Captured {
        let watch = Watch { epoll: &self.epoll, id: 1 };
        self.stream.take().unwrap().finish(&watch)
    }
}

#[test]
fn while_the_disk_is_slow_the_pipe_is_not_read_and_nothing_is_lost() {
    let fixture = fixture();
    let (mut the_loop, mut writer) = Loop::new(fixture.workspace(), 100 << 20);
    let content = sequence(1_000_000);
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let held = the_loop.hold();
        let (written, content) = (&written, content.as_bytes());
        scope.spawn(move || {
            for piece in content.chunks(1_000) {
                writer.write_all(piece).unwrap();
                written.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
        });
        // It ends because nothing happens any more, not because there is nothing more.
        the_loop.turn(Duration::from_millis(200), |_| false);
        let taken = written.load(Ordering::Relaxed);
        let bound = (PIECE + 4 * READ_BUFFER + 2 * 65_536 + 1_000) as u64;
        assert!((PIECE as u64..bound).contains(&taken), "{taken} of {} are in", content.len());
        drop(held);
        the_loop.turn(LONG, |stream| stream.pipe.is_none());
    });
    the_loop.settle_all();
    let captured = the_loop.finish();
    let kept = kept(&captured);
    assert!(kept.complete && kept.bytes == content.len() as u64, "{kept:?}");
    assert!(fs::read_to_string(fixture.at(&kept.path.unwrap())).unwrap() == content);
}

#[test]
fn at_every_boundary_the_file_has_what_the_naive_model_has() {
    let fixture = fixture();
    let sizes = [0, 1, 999, 1_000, 1_001, 3_999, 4_000, 4_001, 65_536];
    let sizes = sizes.into_iter().chain([PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 4_000]);
    for (size, unit) in sizes.flat_map(|size| [(size, "x"), (size, "€")]) {
        let content = &unit.repeat(size)[..size - size % unit.len()];
        for limit in [1, 3_999, 4_000, PIECE as u64, PIECE as u64 + 1, u64::MAX] {
            let (mut the_loop, mut writer) = Loop::new(fixture.workspace(), limit);
            std::thread::scope(|scope| {
                // In pieces of another size than anything here.
                scope.spawn(|| {
                    content.as_bytes().chunks(777).for_each(|part| writer.write_all(part).unwrap());
                    drop(writer);
                });
                the_loop.turn(LONG, |stream| stream.pipe.is_none());
            });
            the_loop.settle_all();
            let captured = the_loop.finish();
            let what = format!("{size} {unit} {limit}");
            assert_eq!(captured.bytes, content.len() as u64, "{what}");
            if content.chars().count() <= 1_000 {
                assert_eq!((captured.omitted_bytes, captured.kept), (0, None), "{what}");
                continue;
            }
            let kept = kept(&captured);
            let expected = &content.as_bytes()[..content.len().min(limit.min(1 << 40) as usize)];
            assert_eq!(kept.bytes, expected.len() as u64, "{what}");
            assert_eq!(kept.complete, expected.len() == content.len(), "{what}");
            assert!(fs::read(fixture.at(&kept.path.unwrap())).unwrap() == expected, "{what}");
        }
    }
}

#[test]
fn what_is_left_in_the_pipe_at_the_end_is_written_too() {
    let fixture = fixture();
    let (mut the_loop, mut writer) = Loop::new(fixture.workspace(), 100 << 20);
    rustix::pipe::fcntl_setpipe_size(&writer, 1 << 20).unwrap();
    let content = sequence(100_000);
    writer.write_all(content.as_bytes()).unwrap();
    // A process still holds the pipe.
    the_loop.settle_all();
    let captured = the_loop.finish();
    drop(writer);
    let kept = kept(&captured);
    assert!(kept.complete, "{kept:?}");
    assert!(fs::read_to_string(fixture.at(&kept.path.unwrap())).unwrap() == content);
}

#[test]
fn a_file_that_was_given_up_never_appears_for_whoever_is_next() {
    let fixture = fixture();
    let (mut the_loop, mut writer) = Loop::new(fixture.workspace(), 100 << 20);
    let held = the_loop.hold();
    writer.write_all(sequence(10_000).as_bytes()).unwrap();
    drop(writer);
    assert!(!the_loop.settle());
    let captured = the_loop.finish();
    let kept = kept(&captured);
    assert_eq!((kept.path, kept.complete), (None, false));
    assert_eq!(kept.error.as_deref(), Some("the disk did not answer in time"));
    fixture.workspace().clear().unwrap();
    drop(held);
    // Waits for the threads.
    drop(the_loop);
    assert!(!fixture.at("~/.tool-output").exists());
}

#[test]
fn a_full_disk_ends_the_file_and_not_the_call() {
    with_small_file_system(1 << 20, "sandbox::spool::tests::on_a_small_file_system");
}

#[test]
fn on_a_small_file_system() {
    let Some(small) = small_file_system() else { return };
    let data = DataDir::create(Some(&small), 1, None).unwrap();
    let workspace = &data.workspaces()[0];
    let (mut the_loop, mut writer) = Loop::new(workspace, 100 << 20);
    let content = sequence(600_000);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(content.as_bytes()).unwrap();
            drop(writer);
        });
        the_loop.turn(LONG, |stream| stream.pipe.is_none());
    });
    the_loop.settle_all();
    let captured = the_loop.finish();
    assert_eq!(captured.bytes, content.len() as u64);
    let kept = kept(&captured);
    assert_eq!(kept.error.as_deref(), Some("No space left on device"));
    assert!(!kept.complete && kept.bytes > 500_000, "{kept:?}");
    let file = fs::read_to_string(workspace.at(&kept.path.unwrap())).unwrap();
    assert!(file == content[..kept.bytes as usize]);
}

#[test]
fn the_file_is_made_new_even_where_a_fifo_waits() {
    let fixture = fixture();
    fs::create_dir(fixture.at("~/.tool-output")).unwrap();
    if let Some(user) = CommandUser::detect() {
        let (uid, gid) = (Some(user.uid().as_raw()), Some(user.gid().as_raw()));
        std::os::unix::fs::chown(fixture.at("~/.tool-output"), uid, gid).unwrap();
    }
    let mode = Mode::RWXU | Mode::RWXG | Mode::RWXO;
    for n in 1..=8 {
        let path = fixture.at(&format!("~/.tool-output/{n}-stdout.txt"));
        rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0).unwrap();
    }
    let kept = kept(&run(&bare(), fixture.spec("seq 1 10000")).stdout);
    assert!(kept.complete && kept.path.is_some_and(|path| path.len() > 40));
}
