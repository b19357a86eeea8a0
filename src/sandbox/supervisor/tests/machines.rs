//! The machine in which a slot's jails live, as the supervisor keeps it.

use super::*;
use crate::sandbox::jail::Machine;

impl Bench {
    fn machine(&self, slot: usize, network: bool) -> Result<Arc<Machine>, String> {
        let (sender, receiver) = channel();
        let workspace = self.workspace.in_slot(slot);
        let take = Box::new(move |machine| sender.send(machine).unwrap());
        self.supervisor.machine(Arc::new(workspace), network, take);
        receiver.recv_timeout(LONG).expect("an answer")
    }

    fn run_in(&self, slot: usize, network: bool, command: &str) -> String {
        let workspace = Arc::new(self.workspace.in_slot(slot));
        let finished = self.run_spec_at(CommandSpec { workspace, network, ..self.spec(command) });
        assert_eq!(finished.end, End::Exited(0), "{command}: {finished:?}");
        finished.stdout.text
    }

    fn run_spec_at(&self, spec: CommandSpec) -> Finished {
        let (sender, receiver) = channel();
        self.supervisor.run(spec, Box::new(move |finished| sender.send(finished).unwrap()));
        receiver.recv_timeout(LONG).expect("an answer")
    }

    fn leave(&self, slot: usize) {
        let (sender, receiver) = channel();
        self.supervisor.leave(slot, Box::new(move |gone| sender.send(gone).unwrap()));
        assert!(receiver.recv_timeout(LONG).expect("an end"));
    }
}

#[test]
fn calls_with_and_without_network_have_a_machine_each_and_find_it_again() {
    in_sandboxes(|bench| {
        const LOOK: &str = "cat /dev/shm/which; readlink /proc/self/ns/net";
        let name = |network| format!("echo {network} > /dev/shm/which; {LOOK}");
        let offline = bench.run_in(7, false, &name("offline"));
        let online = bench.run_in(7, true, &name("online"));
        assert!(offline.starts_with("offline\n") && online.starts_with("online\n"));
        assert_ne!(offline.lines().last(), online.lines().last());
        for _ in 0..3 {
            assert_eq!(bench.run_in(7, false, LOOK), offline);
            assert_eq!(bench.run_in(7, true, LOOK), online);
        }
        bench.leave(7);
        assert_eq!(bench.run_in(7, false, "ls -A /dev/shm"), "");
    });
}

#[test]
fn a_machine_is_there_for_whoever_asks_and_until_its_slot_is_left() {
    in_sandboxes(|bench| {
        // Nothing has run yet.
        let first = bench.machine(3, false).unwrap();
        assert!(Arc::ptr_eq(&first, &bench.machine(3, false).unwrap()));
        assert!(!Arc::ptr_eq(&first, &bench.machine(3, true).unwrap()));
        assert!(!Arc::ptr_eq(&first, &bench.machine(4, false).unwrap()));
        // It outlives the jail that has founded it.
        let workspace = Arc::new(bench.workspace.in_slot(3));
        let spec = CommandSpec { workspace, ..bench.spec("kill -9 -1") };
        bench.run_spec_at(spec);
        assert!(Arc::ptr_eq(&first, &bench.machine(3, false).unwrap()));
        bench.leave(3);
        assert!(!Arc::ptr_eq(&first, &bench.machine(3, false).unwrap()));
        bench.supervisor.close();
        assert_eq!(bench.machine(3, false).unwrap_err(), "the sandbox is closed");
    });
}

#[test]
fn a_slot_that_is_left_before_its_machine_is_ready_answers_those_who_wait() {
    in_sandboxes(|bench| {
        for _ in 0..20 {
            let (sender, receiver) = channel();
            let workspace = Arc::new(bench.workspace.in_slot(5));
            let take = Box::new(move |machine: Result<_, _>| sender.send(machine.is_ok()).unwrap());
            bench.supervisor.machine(workspace, false, take);
            bench.leave(5);
            receiver.recv_timeout(LONG).expect("an answer");
        }
    });
}
