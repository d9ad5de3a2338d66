//! What the cluster is to run, and the hosts that it begins with.

use std::collections::BTreeMap;

use blixard_core::command::{Command, Entry, NewNode, Origin, Worker};
use blixard_core::manifest::{Manifest, VmSpec};
use blixard_core::state::State;
use blixard_core::types::{
    ClusterId, Failover, Hash, Hypervisor, Labels, LeaseTerms, Level, NodeId, NodeRole, Priority, Resources,
    RestartPolicy, Term, Timestamp,
};

/// What a person has declared last.
#[derive(Clone)]
pub struct Declared {
    pub vms: BTreeMap<&'static str, Vm>,
    pub lease: LeaseTerms,
    pub servers: usize,
    /// Counts the manifests, so that no two are equal: who was head once would be held.
    edition: u32,
}

#[derive(Clone, Copy)]
pub struct Vm {
    pub replicas: usize,
    pub failover: Failover,
    /// Another one is another runner.
    pub version: u32,
}

impl Declared {
    pub fn new(servers: usize) -> Self {
        Self { vms: BTreeMap::new(), lease: LeaseTerms::FAST, servers, edition: 0 }
    }

    pub fn vm(&mut self, name: &'static str, replicas: usize, failover: Failover) {
        self.vms.insert(name, Vm { replicas, failover, version: 0 });
    }

    /// The command that makes it the head.
    pub fn command(&mut self) -> Command {
        self.edition += 1;
        let vms = self.vms.iter().map(|(name, vm)| (name.parse().expect("a name"), spec(name, *vm)));
        let mut manifest = Manifest::new(vms.collect()).expect("it is valid");
        manifest.cluster.servers = self.servers;
        manifest.cluster.lease = self.lease;
        manifest.cluster.replace_servers_after_seconds = 20_000 + self.edition;
        Command::OfferManifest { manifest, from: Origin::Person("a person".to_owned()) }
    }
}

fn spec(name: &str, vm: Vm) -> VmSpec {
    let path = |replica| format!("/nix/store/{}-{name}-{replica}-{}", "a".repeat(32), vm.version);
    VmSpec {
        runners: (0..vm.replicas).map(|replica| path(replica).parse().expect("a store path")).collect(),
        system: "x86_64-linux".to_owned(),
        hypervisor: Hypervisor::Qemu,
        vcpus: 1,
        memory_mib: 1,
        memory_overhead_mib: Some(0),
        disk_mib: 0,
        kvm: false,
        requires: Labels::default(),
        restart: RestartPolicy::Always,
        notifies: false,
        failover: vm.failover,
        priority: Priority::default(),
        min_available: None,
    }
}

/// A cluster of these hosts, of which the first are its servers.
pub fn founded(hosts: u64, declared: &mut Declared) -> State {
    let role = |number| if number <= declared.servers as u64 { NodeRole::Server } else { NodeRole::Worker };
    let mut commands = vec![Command::Found {
        cluster: ClusterId::from_bytes([7; 16]),
        ca_certificate: vec![1],
        sealed_ca_key: vec![2],
        first: host(1, role(1)),
        listed_servers: declared.servers,
    }];
    commands.extend((2..=hosts).map(|number| Command::Admit(host(number, role(number)))));
    commands.extend((1..=hosts).map(|number| registration(number, role(number), Hash::of(b"an earlier boot"))));
    commands.push(declared.command());
    let mut state = State::default();
    for command in commands {
        let entry =
            Entry { at: Timestamp(0), decided_in: command.is_decision().then_some(Term(0)), request: None, command };
        state.apply(0, Term(0), &entry);
    }
    state
}

/// The host of this number, which is its node's, too.
pub fn host(number: u64, role: NodeRole) -> NewNode {
    NewNode {
        name: format!("node{number}").parse().expect("it is a name"),
        address: format!("127.0.0.1:{number}").parse().expect("it is an address"),
        key: Hash::of(&number.to_be_bytes()),
        understands: Level::NEWEST,
        role,
    }
}

/// What a host has to give, said in this boot of it.
pub fn registration(number: u64, role: NodeRole, boot: Hash) -> Command {
    let worker = Worker {
        resources: Resources { cpus: 16, memory_mib: 64, disk_mib: 0 },
        system: "x86_64-linux".to_owned(),
        kvm: false,
        hypervisors: Hypervisor::ALL.to_vec(),
        labels: Labels::default(),
        no_fence: None,
    };
    let NewNode { address, understands, .. } = host(number, role);
    let node = NodeId(number);
    Command::RegisterWorker { node, address, understands, role, worker, secrets: None, boot }
}
