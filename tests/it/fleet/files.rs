//! Files in and out over the network: whole, once, or a typed error.

use std::io::{self, Read};

use tool_executor::artifact::{ArtifactError, PutFiles};
use tool_executor::config::SlotLimits;

use super::*;
use crate::proxy::{Proxy, Trouble};

/// So many bytes without end to their variety.
struct Noise {
    left: u64,
    state: u64,
}

fn noise(bytes: u64) -> Noise {
    Noise { left: bytes, state: 88_172_645_463_325_252 }
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = (buffer.len() as u64).min(self.left) as usize;
        for byte in &mut buffer[..length] {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            *byte = self.state as u8;
        }
        self.left -= length as u64;
        Ok(length)
    }
}

fn run(executor: &ToolExecutor, command: &str) -> String {
    let result = executor.execute("t", bash(command));
    assert_eq!(result.outcome, Outcome::Ok, "{command}: {}", result.error);
    result.output
}

#[test]
fn a_large_file_goes_in_and_comes_out_and_no_process_holds_it() {
    const SIZE: u64 = 96 << 20;
    if !is_alone("fleet::files::a_large_file_goes_in_and_comes_out_and_no_process_holds_it") {
        return;
    }
    // More than a request may otherwise have.
    let mut config = config();
    config.max_body = 1 << 20;
    let backend = LocalBackend::start(LocalConfig::new(1)).unwrap();
    let server = SandboxServer::start(config, backend).unwrap();
    let executor = executor(fleet([url(&server)]));
    let memory = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    };
    // As the trajectory's first: it has no slot yet.
    executor.put("t", &PutFiles::file("warm-up"), &mut noise(1 << 20)).unwrap();
    let before = memory();
    let put = executor.put("t", &PutFiles::file("big"), &mut noise(SIZE)).unwrap();
    assert_eq!((put.bytes, &*put.path), (SIZE, "/workspace/big"));
    /// Compares with what was sent.
    struct Compares(Noise, u64);
    impl io::Write for Compares {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut expected = vec![0; bytes.len()];
            self.0.read_exact(&mut expected)?;
            assert!(expected == bytes, "at {}", self.1);
            self.1 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut compares = Compares(noise(SIZE), 0);
    assert_eq!(executor.copy_artifact("t", "big", &mut compares).unwrap(), SIZE);
    assert_eq!(compares.1, SIZE);
    let grown = memory() - before;
    assert!(grown < 40, "{grown} MiB");
}

#[test]
fn what_fails_on_the_server_is_the_same_error_here() {
    let limits = SlotLimits::default().with_workspace_bytes(Some(8 << 20));
    let backend = LocalBackend::start(LocalConfig::new(1).with_limits(limits)).unwrap();
    let server = SandboxServer::start(config(), backend).unwrap();
    let executor = executor(fleet([url(&server)]));
    run(&executor, "mkdir d; mkfifo fifo");
    let put = |path: &str| executor.put("t", &PutFiles::file(path), &mut &b"x"[..]).unwrap_err();
    assert!(matches!(put("d"), ArtifactError::Invalid(_)));
    assert!(matches!(put("fifo"), ArtifactError::NotAFile(_)));
    assert!(matches!(put("/proc/x"), ArtifactError::Refused(_)));
    let copy = |path: &str| executor.copy_artifact("t", path, &mut io::sink()).unwrap_err();
    assert!(matches!(copy("nope"), ArtifactError::NotFound(path) if path == "nope"));
    assert!(matches!(copy("d"), ArtifactError::NotAFile(_)));
    let bad = executor.put("t", &PutFiles::tar("."), &mut &b"no tar"[..]).unwrap_err();
    assert!(matches!(bad, ArtifactError::BadArchive(_)), "{bad}");
    // More than fits, also where its end never comes: the client sends on and learns it after all.
    let full = executor.put("t", &PutFiles::file("full"), &mut noise(u64::MAX)).unwrap_err();
    assert!(matches!(&full, ArtifactError::DiskFull { path, .. } if path == "full"), "{full}");
    struct Fails(u64);
    impl Read for Fails {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0 += 1;
            if self.0 > 100 {
                Err(io::Error::other("the disk is on fire"))
            } else {
                Ok(buffer.len())
            }
        }
    }
    let failed = executor.put("t", &PutFiles::file("failed"), &mut Fails(0)).unwrap_err();
    assert!(matches!(&failed, ArtifactError::Io(_, why) if why.to_string().contains("fire")));
    assert_eq!(run(&executor, "ls -A"), "d\nfifo");
}

#[test]
fn a_put_whose_connection_breaks_is_there_once_or_not_at_all() {
    let server = server(1);
    let proxy = Proxy::before(server.addr());
    let executor = executor(fleet([proxy.url.clone()]));
    let mut done = 0;
    for cut in [0, 1, 100, 400, 1_000, 100_000, 2_900_000].map(Trouble::CutRequest) {
        proxy.next("POST /v3/put", cut.clone());
        let put = executor.put("t", &PutFiles::file("f"), &mut noise(3_000_000));
        let there = run(&executor, "stat -c %s f 2>/dev/null || echo none; rm -f f; ls -A");
        match put {
            Ok(summary) => assert_eq!((summary.bytes, &*there), (3_000_000, "3000000"), "{cut:?}"),
            Err(error) => assert_eq!(there, "none", "{cut:?}: {error}"),
        }
    }
    // Where only the answer is lost, it is asked for.
    for cut in [0, 1, 40, 100].map(Trouble::CutResponse) {
        proxy.next("POST /v3/put", cut.clone());
        let put = executor.put("t", &PutFiles::file("f"), &mut noise(3_000_000));
        done += 1;
        assert_eq!(put.unwrap().bytes, 3_000_000, "{cut:?}");
        assert_eq!(run(&executor, "stat -c %s f; rm f"), "3000000", "{cut:?}");
    }
    assert_eq!(done, 4);
}
