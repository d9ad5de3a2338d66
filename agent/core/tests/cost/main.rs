//! What one entry costs does not grow with what else there is.

#![expect(clippy::disallowed_types, reason = "the time that it takes is what this measures")]

use std::time::{Duration, Instant};

use blixard_core::command::{Command, Entry, NewNode, Reply};
use blixard_core::manifest::VmSpec;
use blixard_core::state::{MAX_VMS, State};
use blixard_core::types::{ClusterId, Hash, Term, Timestamp};

const TERM: Term = Term(1);

fn apply(state: &mut State, decided_in: Option<Term>, command: Command) -> Reply {
    state.apply(1, TERM, &Entry { at: Timestamp(1), decided_in, command }).reply
}

fn put(name: &str, memory_mib: u64) -> Command {
    let json = format!(
        r#"{{ "runners": ["/nix/store/0c6kzph7l0dcbfmjap64f0czdafn3b7x-{name}"], "system": "x86_64-linux",
            "hypervisor": "qemu", "vcpus": 1, "memoryMiB": {memory_mib} }}"#
    );
    let spec = VmSpec::parse(json.as_bytes()).unwrap();
    Command::PutVm { name: name.parse().unwrap(), spec, running: true, must: None }
}

fn cluster() -> State {
    let first =
        NewNode { name: "alpha".parse().unwrap(), address: "10.0.0.1:7420".parse().unwrap(), key: Hash::of(b"alpha") };
    let cluster = ClusterId::from_bytes([7; 16]);
    let found = Command::Found { cluster, ca_certificate: vec![], sealed_ca_key: vec![], first };
    let mut state = State::default();
    assert!(matches!(apply(&mut state, Some(TERM), found), Reply::Admitted { .. }));
    state
}

fn fill(state: &mut State, vms: usize) {
    for number in state.vms().len()..vms {
        assert_eq!(apply(state, None, put(&format!("vm{number}"), 100)), Reply::Done);
    }
}

/// What making, replacing, stopping, starting and removing one VM takes, at the quietest moment of several.
fn cost(state: &mut State) -> Duration {
    let name = || "vm".parse().unwrap();
    let commands = [
        put("vm", 100),
        put("vm", 200),
        Command::SetVmRunning { name: name(), running: false },
        Command::SetVmRunning { name: name(), running: true },
        Command::RemoveVm { name: name() },
    ];
    let mut round = || {
        let begin = Instant::now();
        for command in &commands {
            assert_eq!(apply(state, None, command.clone()), Reply::Done);
        }
        begin.elapsed()
    };
    (0..100).map(|_| round()).min().expect("there is a round")
}

#[test]
fn a_change_of_one_vm_costs_about_the_same_among_two_hundred_thousand() {
    let mut state = cluster();
    fill(&mut state, 10);
    let few = cost(&mut state);
    // Looking at all of them would take hundreds of times longer among the first already.
    for vms in [10_000, MAX_VMS - 1] {
        fill(&mut state, vms);
        let many = cost(&mut state);
        assert!(many < few * 20, "{few:?} among 10, {many:?} among {vms}");
    }

    assert_eq!(apply(&mut state, None, put("last", 100)), Reply::Done);
    let Reply::Refused(why) = apply(&mut state, None, put("more", 100)) else { panic!("one more than the most") };
    assert!(why.contains("which is the most"), "{why}");
    assert_eq!(apply(&mut state, None, put("last", 200)), Reply::Done, "what is there may still be replaced");
}
