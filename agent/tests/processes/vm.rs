//! VMs that are written, and that nobody runs.

use blixard_core::command::{Command, Presence};
use blixard_core::manifest::VmSpec;
use blixard_core::types::{Failover, Hypervisor, Labels, Priority, RestartPolicy};

/// A VM that is written, and not run.
pub fn put(name: &str, must: Option<Presence>) -> Command {
    Command::PutVm { name: name.parse().expect("a label"), spec: spec(name), running: false, must }
}

/// A VM that no server of a test would run, with the runner of that name.
pub fn spec(name: &str) -> VmSpec {
    VmSpec {
        runners: vec![runner(name).parse().expect("a store path")],
        system: "x86_64-linux".to_owned(),
        hypervisor: Hypervisor::Qemu,
        vcpus: 1,
        memory_mib: 512,
        memory_overhead_mib: None,
        disk_mib: 0,
        kvm: true,
        requires: Labels::from_iter([("payload".to_owned(), "x".repeat(120))]),
        restart: RestartPolicy::Always,
        notifies: false,
        failover: Failover::Automatic,
        priority: Priority::default(),
        min_available: None,
    }
}

/// The runner of that VM.
pub fn runner(name: &str) -> String {
    format!("/nix/store/0c6kzph7l0dcbfmjap64f0czdafn3b7x-microvm-qemu-{name}-0")
}
