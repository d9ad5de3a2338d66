//! How a register is a VM.

use blixard_core::command::Presence;
use blixard_core::manifest::VmSpec;
use blixard_core::types::{Failover, Hypervisor, Labels, Priority, RestartPolicy};

use crate::record::Change;

/// A VM that says by the size of its volumes what was written, and that no host has room for, whether it is to run or not.
pub fn spec(register: &str, content: u64) -> VmSpec {
    let runner = format!("/nix/store/0c6kzph7l0dcbfmjap64f0czdafn3b7x-microvm-qemu-{register}-0");
    VmSpec {
        runners: vec![runner.parse().expect("it is a store path")],
        system: "x86_64-linux".to_owned(),
        hypervisor: Hypervisor::Qemu,
        vcpus: 1,
        memory_mib: 1,
        memory_overhead_mib: None,
        disk_mib: content,
        kvm: false,
        requires: Labels::new(),
        restart: RestartPolicy::Always,
        notifies: false,
        failover: Failover::Automatic,
        priority: Priority::default(),
        min_available: None,
    }
}

/// The least that is written: more than any host has.
pub const LEAST_CONTENT: u64 = 1 << 40;

/// What the state says when it refuses this change for what the register holds.
pub fn refusal(change: Change) -> &'static str {
    match change {
        Change::Put { must: Some(Presence::Absent), .. } => "there is a VM",
        _ => "there is no VM",
    }
}

/// Whether an agent that couldn't take a change says so for certain.
pub fn says_nothing_was_changed(message: &str) -> bool {
    ["no leader took it", "this agent is stopping", "this host is not a member yet"]
        .iter()
        .any(|words| message.starts_with(words))
}
