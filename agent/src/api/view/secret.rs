//! How far all have come with a rotation of the cluster secret.

use std::collections::BTreeSet;

use blixard_core::state::{Cluster, Node, State};
use blixard_core::types::{SecretId, SecretIds};

/// What a person has to do about the cluster secret, a line each.
pub fn problems(state: &State) -> Vec<String> {
    let Some(secret) = state.cluster().and_then(Cluster::secret) else { return Vec::new() };
    let names = |of: &dyn Fn(&Node, SecretIds) -> bool| {
        let of = |node: &&Node| node.secrets.is_some_and(|secrets| of(node, secrets));
        let names: Vec<_> = state.nodes().values().filter(of).map(|node| node.name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let other = names(&|_, secrets| !secrets.contains(secret)).map(|names| {
        format!(
            "{names} can't sign: what is in cluster.secret_file there is not the cluster's secret (any more): put that into it"
        )
    });
    let behind = names(&|_, secrets| secrets.next == Some(secret)).map(|names| {
        format!(
            "the cluster secret was rotated: make the next one (cluster.next_secret_file) the current one \
             (cluster.secret_file) on {names}"
        )
    });
    other.into_iter().chain(behind).chain(preparation(state, secret, names)).collect()
}

/// What is left to do before the secret can be rotated, if somebody has a next one.
fn preparation(
    state: &State,
    secret: SecretId,
    names: impl Fn(&dyn Fn(&Node, SecretIds) -> bool) -> Option<String>,
) -> Option<String> {
    let next_of = |secrets: SecretIds| secrets.next.filter(|_| secrets.current == secret);
    let next: BTreeSet<_> = state.nodes().values().filter_map(|node| next_of(node.secrets?)).collect();
    let with = names(&|_, secrets| next_of(secrets).is_some())?;
    if next.len() > 1 {
        return Some(format!(
            "the cluster secret can't be rotated: {with} don't have the same next one; cluster.next_secret_file has to hold \
             the same on each"
        ));
    }
    let lacks = |secrets: SecretIds| secrets.current == secret && secrets.next.is_none();
    let set = "set cluster.next_secret_file (services.blixard.nextClusterSecretFile) there, too";
    if let Some(lacking) = names(&|node, secrets| node.raft.is_some() && lacks(secrets)) {
        return Some(format!(
            "the cluster secret can't be rotated yet: {with} has the next one, and {lacking} lacks it: {set}"
        ));
    }
    let lacking = names(&|_, secrets| lacks(secrets));
    let lacking = lacking.map(|names| format!("; {names} lacks it, and can't sign from then on: {set}"));
    Some(format!(
        "the cluster secret can be rotated, by `blixard cluster rotate-secret`: every server has the next one{}",
        lacking.unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use blixard_core::command::{Command, Entry, NewNode, Worker};
    use blixard_core::types::{
        Address, ClusterId, Hash, Labels, Level, NodeId, NodeName, NodeRole, Resources, Term, Timestamp,
    };

    use super::*;

    const OLD: SecretId = SecretId([2; 8]);
    const NEW: SecretId = SecretId([3; 8]);
    const WRONG: SecretId = SecretId([4; 8]);

    /// What is said of a cluster whose key is sealed with the old one, of two servers and a worker that have these.
    fn told(nodes: [(SecretId, Option<SecretId>); 3]) -> String {
        let (mut state, term) = (State::default(), Term(1));
        let mut apply = |decided_in, command| {
            state.apply(1, term, &Entry { at: Timestamp(1), decided_in, request: None, command });
        };
        for (id, (name, (current, next))) in (1..).zip(["alpha", "beta", "gamma"].into_iter().zip(nodes)) {
            let (name, address): (NodeName, Address) = (name.parse().unwrap(), format!("{name}:1").parse().unwrap());
            let (key, understands, role) = (
                Hash::of(name.as_str().as_bytes()),
                Level(1),
                if id < 3 { NodeRole::Server } else { NodeRole::Worker },
            );
            let host = NewNode { name, address: address.clone(), key, understands, role };
            let cluster = ClusterId::from_bytes([7; 16]);
            match id {
                1 => {
                    let (ca_certificate, sealed_ca_key) = (vec![1], OLD.0.to_vec());
                    apply(
                        Some(term),
                        Command::Found { cluster, ca_certificate, sealed_ca_key, first: host, listed_servers: 1 },
                    );
                }
                _ => apply(None, Command::Admit(host)),
            }
            let worker = Worker {
                resources: Resources::default(),
                system: "x86_64-linux".to_owned(),
                kvm: false,
                hypervisors: Vec::new(),
                labels: Labels::new(),
                no_fence: None,
            };
            let (node, secrets) = (NodeId(id), Some(SecretIds { current, next }));
            apply(
                None,
                Command::RegisterWorker {
                    node,
                    address,
                    understands,
                    role,
                    worker,
                    secrets,
                    boot: Hash::of(b"a boot"),
                },
            );
        }
        problems(&state).join("\n")
    }

    #[test]
    fn whoever_has_to_do_something_about_the_secret_is_named_with_what() {
        assert_eq!(told([(OLD, None); 3]), "");
        assert!(
            told([(OLD, Some(NEW)), (OLD, None), (OLD, None)]).contains("alpha has the next one, and beta lacks it")
        );
        assert!(told([(OLD, Some(NEW)); 3]).contains("`blixard cluster rotate-secret`"));
        assert!(told([(OLD, Some(NEW)), (OLD, Some(WRONG)), (OLD, None)]).contains("alpha, beta don't have the same"));
        let ready = told([(OLD, Some(NEW)), (OLD, Some(NEW)), (OLD, None)]);
        assert!(ready.contains("rotate-secret`: every server has") && ready.contains("; gamma lacks it"), "{ready}");
        // As after the rotation: what is the current secret here was the next one.
        let done = told([(NEW, Some(OLD)), (OLD, None), (WRONG, None)]);
        assert!(done.contains("make the next one") && done.contains("on alpha"), "{done}");
        assert!(done.starts_with("gamma can't sign: what is in cluster.secret_file"), "{done}");
        assert_eq!(done.lines().count(), 2);
    }
}
