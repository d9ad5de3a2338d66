//! What becomes of instances where their nodes are lost, in words.

use blixard_core::manifest::VmSpec;
use blixard_core::state::{ManualBecause, Node, Placement, Standing, State, Takeover};
use blixard_core::types::Failover;

use super::super::proto;

/// The word for what holds of a node's lease.
pub fn lease(member: &Node) -> &'static str {
    match member.lease.standing {
        Standing::Gone => "dead",
        Standing::Armed(_) => "armed",
        Standing::Fenced => "fenced",
        _ if member.worker.as_ref().is_some_and(|worker| worker.no_fence.is_some()) => "none",
        Standing::Unarmed | Standing::Rebooted(_) => "unarmed",
    }
}

/// The word for whether instances of silent nodes start elsewhere.
pub fn takeover(state: &State) -> &'static str {
    match state.takeover() {
        Takeover::Free => "free",
        Takeover::Frozen { .. } => "frozen",
        Takeover::Resumed => "resumed",
    }
}

/// What a person should do about a takeover that waits for one.
pub fn frozen(state: &State) -> Option<String> {
    matches!(state.takeover(), Takeover::Frozen { .. }).then(|| {
        "takeover is frozen, since many nodes fell silent at once: what they ran starts elsewhere when enough of them are \
         back, or at once by `blixard cluster resume`"
            .to_owned()
    })
}

/// What a person should know of nodes that can't arm, where others can: a cluster in which none can does without.
pub fn unfenced(state: &State, nodes: &[proto::Node]) -> impl Iterator<Item = String> {
    let why = |node: &proto::Node| Some(node.worker.as_ref()?.no_fence.clone()).filter(|why| !why.is_empty());
    let answering = nodes.iter().filter(|node| node.alive && state.has_fence());
    answering.filter_map(move |node| {
        Some(format!("node {} has no fence, so nothing automatic is placed on it: {}", node.name, why(node)?))
    })
}

/// Whether what is placed there is known not to run, though its node does not answer: it has ended there for good.
pub fn is_over(state: &State, placement: &Placement) -> bool {
    let standing = state.nodes().get(&placement.node).map(|node| node.lease.standing);
    match standing {
        Some(Standing::Gone) => true,
        Some(Standing::Fenced) => placement.unit.failover == Failover::Automatic,
        _ => false,
    }
}

/// What is known of an instance whose node does not answer, and what it waits for.
pub fn unknown(state: &State, placement: &Placement) -> String {
    let node = state.name_of(placement.node);
    let may_run = format!("{node} does not answer, so it may still run there");
    match (placement.unit.failover, state.takeover()) {
        (Failover::Manual, _) => {
            format!("{may_run}: if {node} is dead, say so with `blixard node confirm-dead {node}`")
        }
        (Failover::Automatic, Takeover::Frozen { .. }) => format!("{may_run}, and takeover is frozen"),
        (Failover::Automatic, _) => format!("{may_run}, until its lease there has ended"),
    }
}

/// As what an instance is placed, or would be.
pub fn failover(state: &State, placement: Option<&Placement>, spec: Option<&VmSpec>) -> Option<Failover> {
    placement.map(|placement| placement.unit.failover).or_else(|| Some(state.failover(spec?)))
}

/// What becomes of an instance where its node is lost, why that, and what it costs.
pub fn explained(state: &State, placement: Option<&Placement>, spec: Option<&VmSpec>) -> String {
    let node = placement.and_then(|placement| state.nodes().get(&placement.node));
    let anew = spec.and_then(|spec| state.manual_because(spec));
    match failover(state, placement, spec) {
        None => String::new(),
        Some(Failover::Automatic) => {
            let armed = node.and_then(|node| node.lease.arming()).map(|arming| arming.terms);
            let terms = armed.unwrap_or(state.settings().lease);
            let (lease, wait) = (terms.lease().as_secs_f64(), terms.wait().as_secs_f64());
            let later = anew.map(|anew| format!("; manual once it is placed anew, {}", because(anew)));
            format!(
                "automatic failover: where its node is not heard for {lease} s, it is stopped there, and starts elsewhere after \
                 {wait} s{}",
                later.unwrap_or_default()
            )
        }
        Some(Failover::Manual) => {
            let why = match (placement, anew) {
                (_, Some(anew)) => because(anew),
                (Some(_), None) if spec.is_some() => "until it is placed anew, as `blixard vm move` does".to_owned(),
                _ => "as it was placed".to_owned(),
            };
            let name = node.map_or("NODE", |node| node.name.as_str());
            format!(
                "manual failover, {why}: where its node is not heard, it runs on, and starts elsewhere only once a person says \
                 that the node is dead (`blixard node confirm-dead {name}`)"
            )
        }
    }
}

fn because(why: ManualBecause) -> String {
    match why {
        ManualBecause::Declared => "as it is declared".to_owned(),
        ManualBecause::LocalState => "since its volumes are on one node".to_owned(),
        ManualBecause::FewServers { servers } => {
            format!("since there are fewer than 3 servers ({servers}): the loss of one would stop it everywhere")
        }
        ManualBecause::NoFence => "since no node has a fence (`blixard node show NODE` says why)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use blixard_core::command::{Command, Entry, InstancePhase, NewNode, Reply, VmReport, Worker};
    use blixard_core::types::{
        ClusterId, Exit, Generation, Hash, Hypervisor, Labels, Level, NodeEpoch, NodeId, NodeRole, Nonce, Resources,
        RestartPolicy, Term, Timestamp,
    };

    use super::*;

    /// A state, and the number of its last entry.
    struct Cluster(State, u64);

    impl Cluster {
        /// Of so many servers, which have armed if they have a fence.
        fn of(servers: u64, fence: bool) -> Self {
            let mut cluster = Self(State::default(), 0);
            for id in 1..=servers {
                let first = NewNode {
                    name: format!("node{id}").parse().unwrap(),
                    address: "127.0.0.1:1".parse().unwrap(),
                    key: Hash::of(&id.to_be_bytes()),
                    understands: Level(1),
                    role: NodeRole::Auto,
                };
                let (address, node) = (first.address.clone(), NodeId(id));
                let (cluster_id, ca_certificate, sealed_ca_key) = (ClusterId::from_bytes([7; 16]), vec![1], vec![2]);
                cluster.say(if id == 1 {
                    Command::Found { cluster: cluster_id, ca_certificate, sealed_ca_key, first, listed_servers: 1 }
                } else {
                    Command::Admit(first)
                });
                let resources = Resources { cpus: 4, memory_mib: 4096, disk_mib: 4096 };
                let (system, hypervisors) = ("x86_64-linux".to_owned(), vec![Hypervisor::Qemu]);
                let no_fence = (!fence).then(|| "it has none".to_owned());
                let worker = Worker { resources, system, kvm: false, hypervisors, labels: Labels::new(), no_fence };
                let (understands, role, secrets) = (Level(1), NodeRole::Auto, None);
                cluster.say(Command::RegisterWorker {
                    node,
                    address,
                    understands,
                    role,
                    worker,
                    secrets,
                    boot: Hash::of(b"a boot"),
                });
                if fence {
                    let (expected, nonce) = (NodeEpoch(0), Nonce([1; 16]));
                    cluster.say(Command::Arm { node, expected, nonce, machine: None });
                }
            }
            cluster
        }

        #[track_caller]
        fn say(&mut self, command: Command) {
            self.1 += 1;
            let decided_in = command.is_decision().then_some(Term(1));
            let entry = Entry { at: Timestamp(self.1), decided_in, request: None, command };
            let reply = self.0.apply(self.1, Term(1), &entry).answer.reply;
            assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
        }

        fn declare(&mut self, spec: VmSpec) {
            self.say(Command::PutVm { name: "web".parse().unwrap(), spec, running: true, must: None });
        }

        /// The VM, which runs on this node.
        fn running(&mut self, spec: VmSpec, on: u64) {
            self.declare(spec);
            let (node, generation) = (NodeId(on), Generation(1));
            self.say(Command::Place { instance: "web-0".parse().unwrap(), node, generation });
            self.report(InstancePhase::Running);
        }

        fn report(&mut self, phase: InstancePhase) {
            let (instance, generation) = ("web-0".parse().unwrap(), Generation(1));
            let report = VmReport { instance, generation, phase, restarts: 0, message: String::new() };
            let node = self.placement().unwrap().node;
            self.say(Command::Report { node, vms: vec![report], tasks: vec![] });
        }

        fn placement(&self) -> Option<&Placement> {
            self.0.instances()[&"web-0".parse().unwrap()].placement.as_deref()
        }

        fn explained(&self) -> String {
            let spec = self.0.vm(&"web".parse().unwrap()).map(|vm| vm.spec);
            explained(&self.0, self.placement(), spec.as_ref())
        }

        /// Its state, and the reason.
        fn shown(&self) -> (String, String) {
            let shown = super::super::explain(&self.0, "web").remove(0).instance.unwrap();
            (shown.state, shown.reason)
        }
    }

    fn spec() -> VmSpec {
        VmSpec { restart: RestartPolicy::Never, ..super::super::tests::spec("web", 1) }
    }

    fn manual() -> VmSpec {
        VmSpec { failover: Failover::Manual, ..spec() }
    }

    #[test]
    fn it_is_said_what_becomes_of_an_instance_and_why() {
        let mut cluster = Cluster::of(3, true);
        cluster.declare(spec());
        let automatic = "automatic failover: where its node is not heard for 10 s, it is stopped there, and starts elsewhere \
                         after 16 s";
        assert_eq!(cluster.explained(), automatic);
        for (spec, why) in
            [(manual(), "as it is declared"), (VmSpec { disk_mib: 1, ..spec() }, "since its volumes are on one node")]
        {
            cluster.declare(spec);
            let told = cluster.explained();
            assert!(told.starts_with(&format!("manual failover, {why}: ")), "{told}");
            assert!(told.ends_with("(`blixard node confirm-dead NODE`)"), "{told}");
        }
        cluster.running(spec(), 2);
        assert_eq!(cluster.explained(), automatic);
        cluster.declare(manual());
        assert_eq!(cluster.explained(), format!("{automatic}; manual once it is placed anew, as it is declared"));
        for (mut cluster, why) in [
            (
                Cluster::of(1, true),
                "since there are fewer than 3 servers (1): the loss of one would stop it everywhere",
            ),
            (Cluster::of(3, false), "since no node has a fence (`blixard node show NODE` says why)"),
        ] {
            cluster.running(spec(), 1);
            let told = cluster.explained();
            assert!(told.starts_with(&format!("manual failover, {why}: ")), "{told}");
            assert!(told.ends_with("(`blixard node confirm-dead node1`)"), "{told}");
        }
        let mut cluster = Cluster::of(3, true);
        cluster.running(manual(), 1);
        cluster.declare(spec());
        let told = cluster.explained();
        assert!(told.starts_with("manual failover, until it is placed anew, as `blixard vm move` does: "), "{told}");
        cluster.say(Command::RemoveVm { name: "web".parse().unwrap() });
        assert!(cluster.explained().starts_with("manual failover, as it was placed: "));
    }

    #[test]
    fn of_an_instance_whose_node_is_silent_it_is_said_what_it_waits_for() {
        let silent = Command::SetWorkerAlive { node: NodeId(1), alive: false };
        let mut cluster = Cluster::of(3, true);
        cluster.running(manual(), 1);
        cluster.say(silent.clone());
        let (state, reason) = cluster.shown();
        assert_eq!(state, "unknown");
        assert!(reason.ends_with("if node1 is dead, say so with `blixard node confirm-dead node1`"), "{reason}");

        let mut cluster = Cluster::of(3, true);
        cluster.running(spec(), 1);
        cluster.say(silent);
        let (state, reason) = cluster.shown();
        assert!(state == "unknown" && reason.ends_with("until its lease there has ended"), "{reason}");
        assert_eq!((takeover(&cluster.0), frozen(&cluster.0)), ("free", None));
        cluster.say(Command::SetTakeover { is_frozen: true });
        assert!(cluster.shown().1.ends_with("and takeover is frozen"));
        let problem = frozen(&cluster.0).unwrap();
        assert!(takeover(&cluster.0) == "frozen" && problem.contains("`blixard cluster resume`"), "{problem}");
        cluster.say(Command::ResumeTakeover);
        assert_eq!((takeover(&cluster.0), frozen(&cluster.0)), ("resumed", None));
    }

    #[test]
    fn what_has_ended_for_good_on_a_node_whose_lease_has_ended_is_not_unknown() {
        for (spec, shown) in [(spec(), "stopped"), (manual(), "unknown")] {
            let mut cluster = Cluster::of(3, true);
            cluster.running(spec, 1);
            cluster.report(InstancePhase::Ended(Exit::Exited(0)));
            cluster.say(Command::SetWorkerAlive { node: NodeId(1), alive: false });
            assert_eq!(cluster.shown().0, "unknown");
            cluster.say(Command::Fence { node: NodeId(1), epoch: NodeEpoch(1) });
            assert_eq!(cluster.shown().0, shown);
            cluster.say(Command::ConfirmDead { node: NodeId(1), abandon_volumes: false });
            assert_eq!(cluster.shown().0, "stopped");
        }
    }

    #[test]
    fn that_a_node_has_no_fence_is_a_problem_where_another_one_has() {
        let shown = |why: &str| {
            let worker = proto::Worker { no_fence: why.to_owned(), ..proto::Worker::default() };
            proto::Node { name: "node3".to_owned(), alive: true, worker: Some(worker), ..proto::Node::default() }
        };
        let problems = |fence, why| unfenced(&Cluster::of(3, fence).0, &[shown(why)]).collect::<Vec<_>>();
        assert!(problems(false, "it is a VM").is_empty() && problems(true, "").is_empty());
        let [problem] = problems(true, "it is a VM").try_into().unwrap();
        assert!(problem.starts_with("node node3 ") && problem.ends_with(": it is a VM"), "{problem}");
    }

    #[test]
    fn a_lease_is_named_by_what_holds_of_it() {
        let word = |cluster: &Cluster| lease(&cluster.0.nodes()[&NodeId(1)]);
        assert_eq!(word(&Cluster::of(1, false)), "none");
        let mut cluster = Cluster::of(3, true);
        assert_eq!(word(&cluster), "armed");
        cluster.say(Command::SetWorkerAlive { node: NodeId(1), alive: false });
        cluster.say(Command::Fence { node: NodeId(1), epoch: NodeEpoch(1) });
        assert_eq!(word(&cluster), "fenced");
        cluster.say(Command::ConfirmDead { node: NodeId(1), abandon_volumes: false });
        assert_eq!(word(&cluster), "dead");
    }
}
